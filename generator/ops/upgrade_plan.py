"""What an upgrade would do, for people."""

from __future__ import annotations

from collections.abc import Mapping

from generator.journal import Journal, Order, is_held
from generator.ops.upgrade_hosts import Site
from generator.ops.upgrade_orders import in_sequence
from generator.rollout import stages


def plan_text(site: Site, journal: Journal, orders: Mapping[str, Order]) -> str:
    """`orders` are those that stand now."""
    workers = journal.sequence or in_sequence(site.workers, orders)
    held = {worker: order for worker, order in {**orders, **journal.orders}.items() if order and is_held(order)}
    lines = [f"from {journal.old}", f"to   {journal.new}", "", "on every host: fetch the images"]
    for stage in stages(workers):
        share = f", {stage.share:.0%} of the new sessions" if stage.share else ""
        watched = "" if held.keys() >= set(stage.workers) else "; then watched"
        lines.append(f"{stage.name}: {', '.join(stage.workers)}{share}{watched}")
    lines += [f"{worker}: stays out of work, {_in_words(order)}" for worker, order in held.items()]
    gateways = [host.name for host in site.new.hosts if host.gateway]
    for host in site.new.hosts:
        alone = " (the only gateway: nobody answers while it is replaced)" if gateways == [host.name] else ""
        lines.append(f"the rest of {host.name}{alone}")
    lines.append(f"at last {site.file} is changed; where a stage fails, all goes back")
    return "\n".join(lines)


def _in_words(order: Order) -> str:
    return f"{order['order']} ordered by {order['by']}" + (f": {order['reason']}" if order["reason"] else "")
