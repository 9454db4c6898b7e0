"""What the exporter tells, before Prometheus' own critic (Debian's promtool)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from prometheus_client.core import Metric

from appliance.exporter.aliases import Aliases
from appliance.exporter.aws_bill import Bill, bill_families
from appliance.exporter.families import write
from appliance.exporter.gateway import parse_counts as parse_gateway
from appliance.exporter.gateway import parse_view
from appliance.exporter.gateway_samples import STATES, gateway_families, node_families
from appliance.exporter.gpu.readings import GpuFacts, GpuReading, GpuState
from appliance.exporter.gpu.samples import gpu_families
from appliance.exporter.prices import PriceTable, price_families
from appliance.exporter.queue_samples import heartbeat_family, job_families, process_families, queue_families
from appliance.process_figures import own_figures
from appliance.queue.counts import parse_counts
from appliance.queue.figures import Line
from generator.docker import Engine

pytestmark = pytest.mark.docker

DOCKERFILE = """\
FROM animatediff-ha/base:{tag}
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus
"""
PRICE = {"usd_per_hour": 1.5, "market": "spot", "as_of": "2026-01-15"}


@pytest.fixture(scope="module")
def promtool(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an image that has it."""
    context = tmp_path_factory.mktemp("promtool")
    (context / "Dockerfile").write_text(DOCKERFILE.format(tag=images))
    name = f"animatediff-test/promtool:{images}"
    for _ in engine.build(["--tag", name, str(context)], timeout=300):
        pass
    return name


def check(promtool: str, text: bytes) -> str:
    """Its complaints."""
    command = ["docker", "run", "--rm", "-i", "--network=none", promtool, "promtool", "check", "metrics"]
    result = subprocess.run(command, input=text, capture_output=True, timeout=60, check=False)
    said = (result.stdout + result.stderr).decode()
    assert result.returncode in (0, 3), said  # 3: there are complaints
    return said


def canonical() -> Iterator[Metric]:
    """At least one sample of every family."""
    reading = GpuReading(0.5, 0.5, 1, 2, 3, 4.0, 5.0, 6.0, {"sw_power_cap": True}, {"corrected": 1})
    yield from gpu_families([GpuState("0", "u", True, GpuFacts("A10G", "550", "0:1"), reading, {"79": 1})])
    yield from queue_families({"default": Line(1, 1, 1.0)})
    fields = ("wait\t64x64\t1", "took\t64x64\t1", "done\t64x64\tm", "video\t64x64", "gpu\t64x64\tA10G", "cost\t64x64")
    yield from job_families(parse_counts(dict.fromkeys(fields, 10**9)), ("m",))
    yield heartbeat_family({"a/0": 1.0})
    yield from process_families({"api": own_figures()})
    peers = b'{"webui a/0": {"status": {"2xx": 1}, "seconds_sum": 1, "within": [1], "bounds": [1]}}'
    yield from gateway_families(parse_gateway(b'{"requests": 1, "peers": %s}' % peers))
    yield from node_families(
        parse_view({"nodes": {"webui a/0": {"state": "UP"}}, "changes": {"webui a/0 UP": 1}}, STATES)
    )
    yield from price_families(PriceTable.parse({"host": PRICE}), ())
    yield from bill_families(Bill(1.0, {("EC2", True): 1.0}), 1, 1.0)


def test_no_complaint_about_a_canonical_name(promtool: str) -> None:
    families = list(canonical())
    assert [family.name for family in families if not family.samples] == []
    assert check(promtool, write(families, {"node_name": "a"})) == ""


def test_the_critic_is_awake(promtool: str) -> None:
    assert "counter metrics should have" in check(promtool, b"# HELP a b\n# TYPE a counter\na 1\n")


def test_the_articles_names_are_read_all_the_same(promtool: str) -> None:
    """They break the rules, which is why they are nobody's canonical names; they must not break the rest."""
    said = check(promtool, write(Aliases().families(list(canonical()), 0), {"node_name": "a"}))
    assert "error" not in said.lower()
