"""Orders about single nodes, and how the gateways see them. For operators."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Response
from pydantic import BaseModel, ConfigDict, Field

from appliance.api.problems import Problem, documented
from appliance.api.services import Operator, Services, ServicesHere, get_operator, patiently
from appliance.queue.nodes import Look
from appliance.queue.orders import Order, OrderKind
from appliance.queue.types import WorkerRecord

LONGEST_SECONDS: Final = 30 * 86400
OUT_OF_WORK: Final = frozenset({"unready", "stopped", "drained", "quarantined"})
HOST: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
INDEX: Final = r"^[0-9]{1,4}$"


router = APIRouter(
    prefix="/api/v1/nodes",
    tags=["nodes"],
    responses=documented(401, 403, 503),
    dependencies=[Depends(get_operator)],
)


class OrderView(BaseModel):
    """`at` and `until` are Unix times in seconds; an order without `until` holds until it is taken back."""

    order: OrderKind
    by: str
    at: float
    reason: str
    share: float | None
    until: float | None


class Seen(BaseModel):
    """How one gateway's controller sees a node. `requests`: what became of those that went there, cumulative since the
    gateway started; `within[i]` of them took at most `bounds[i]` seconds."""

    state: str
    reason: str
    since_seconds: float
    share: float
    fingerprint: str
    busy: int
    requests: dict[str, Any]


class NodeView(BaseModel):
    """A worker's node, `gpu-01/0`, or an api, `gpu-01`. `done` and `failed` are attempts at jobs of the queue and
    `pace_sum` how long the done ones took, in units of their estimates, null for an api; `seen_by` is by gateway,
    without those that have been silent for ten seconds."""

    pool: str
    name: str
    state: str | None
    heartbeat_age_seconds: float | None
    done: int | None
    failed: int | None
    pace_sum: float | None
    order: OrderView | None
    seen_by: dict[str, Seen]


class NodeList(BaseModel):
    nodes: list[NodeView]


class OrderRequest(BaseModel):
    """What shall become of a node. `drain`: what it does it ends, nothing new begins; `quarantine`: it hands back what
    it does; `canary`: it may differ from the others, and takes `share` of the new sessions. `seconds`: for how long."""

    model_config = ConfigDict(extra="forbid")

    order: OrderKind
    reason: str = Field(default="", max_length=200)
    share: float | None = Field(default=None, ge=0, le=1)
    seconds: float | None = Field(default=None, gt=0, le=LONGEST_SECONDS)
    force: bool = Field(default=False, description="although no other node would be left to work")


HostName = Annotated[str, Path(pattern=HOST)]
WorkerIndex = Annotated[str, Path(pattern=INDEX)]


@router.get("", response_model=NodeList)
async def list_nodes(services: ServicesHere) -> NodeList:
    look = await patiently(services, services.queue.nodes.look)
    views = await patiently(services, services.queue.nodes.views)
    workers = {f"webui {worker.name}": worker for worker in look.workers}
    names = sorted({*workers, *(name for view in views.values() for name in _nodes_in(view))})
    return NodeList(nodes=[_view(name, workers.get(name), look, views) for name in names])


@router.put("/{host}/{index}/order", response_model=OrderView, responses=documented(400, 404, 409, 413, 422))
async def put_order(
    services: ServicesHere, caller: Operator, host: HostName, index: WorkerIndex, wanted: OrderRequest
) -> OrderView:
    name, look = f"{host}/{index}", await patiently(services, services.queue.nodes.look)
    if name not in {worker.name for worker in look.workers}:
        raise Problem(404, "no-such-node", f"there is no worker {name}; GET /api/v1/nodes lists them")
    if wanted.share is not None and wanted.order is not OrderKind.CANARY:
        raise Problem(422, "invalid-request", "share: only a canary has one")
    if wanted.order is not OrderKind.CANARY and not wanted.force and not others_work(look, name):
        raise Problem(409, "last-node", f"{name} is the last node that takes work; with force it is done all the same")
    at = round(look.now, 3)
    until = None if wanted.seconds is None else at + wanted.seconds
    order = Order(wanted.order, caller.name, at, _one_line(wanted.reason), wanted.share, until)
    await patiently(services, lambda: give(services, {name: order}))
    return _view_order(order)


@router.delete("/{host}/{index}/order", status_code=204, responses=documented(422))
async def drop_order(services: ServicesHere, caller: Operator, host: HostName, index: WorkerIndex) -> Response:
    """Also where there was none: it is how it shall be. Its failures so far are forgotten."""
    await patiently(services, lambda: take_back(services, [f"{host}/{index}"], caller.name))
    return Response(status_code=204)


async def give(services: Services, orders: dict[str, Order]) -> None:
    await services.queue.nodes.put_orders(orders)
    await services.queue.nodes.tell(
        {"type": f"order_{order.kind.value}", "worker": name, "reason": order.reason, "by": order.by}
        for name, order in orders.items()
    )


async def take_back(services: Services, names: list[str], by: str) -> None:
    await services.queue.nodes.drop_orders(names)
    await services.queue.nodes.tell({"type": "order_over", "worker": name, "reason": "", "by": by} for name in names)


def others_work(look: Look, name: str) -> bool:
    """Whether another worker than this one takes jobs and has not been ordered out of it."""
    return any(
        worker.name != name
        and worker.state not in OUT_OF_WORK
        and worker.heartbeat_age_seconds < ALIVE_SECONDS
        and (worker.name not in look.orders or look.orders[worker.name].kind is OrderKind.CANARY)
        for worker in look.workers
    )


ALIVE_SECONDS: Final = 5.0


def _nodes_in(view: Any) -> dict[str, Any]:
    nodes = view.get("nodes") if isinstance(view, dict) else None
    return nodes if isinstance(nodes, dict) else {}


def _view(key: str, worker: WorkerRecord | None, look: Look, views: Any) -> NodeView:
    pool, _, name = key.partition(" ")
    order = look.orders.get(name) if pool == "webui" else None
    return NodeView(
        pool=pool,
        name=name,
        state=worker.state if worker else None,
        heartbeat_age_seconds=worker.heartbeat_age_seconds if worker else None,
        done=worker.done if worker else None,
        failed=worker.failed if worker else None,
        pace_sum=worker.pace_sum if worker else None,
        order=_view_order(order) if order else None,
        seen_by={gateway: _seen(view, key) for gateway, view in views.items() if key in _nodes_in(view)},
    )


def _seen(view: Any, key: str) -> Seen:
    """What a controller of this or another version has written about a node."""
    node, counts = _nodes_in(view)[key], view.get("counts")
    return Seen(
        state=str(node.get("state", "")),
        reason=str(node.get("reason", "")),
        since_seconds=float(node.get("since_seconds", 0)),
        share=float(node.get("share", 0)),
        fingerprint=str(node.get("fingerprint", "")),
        busy=int(node.get("busy", 0)),
        requests=counts.get(key, {}) if isinstance(counts, dict) else {},
    )


def _view_order(order: Order) -> OrderView:
    return OrderView(
        order=order.kind, by=order.by, at=order.at, reason=order.reason, share=order.share, until=order.until
    )


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
