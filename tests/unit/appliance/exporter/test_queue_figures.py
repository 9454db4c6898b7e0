from __future__ import annotations

import pytest

from appliance.exporter.families import write
from appliance.exporter.held import PATIENCE_SECONDS, HeldCounts
from appliance.exporter.queue_samples import job_families, process_families, queue_families
from appliance.process_figures import STALE_SECONDS, ProcessFigures, own_figures
from appliance.queue.counts import BOUNDS, Counts, Spread, label_text, parse_counts, whole_numbers
from appliance.queue.figures import Line


def test_fields_as_the_scripts_write_them() -> None:
    counts = parse_counts(
        {
            "wait\t512x512\t0.5": 2, "wait\t512x512\tmore": 1, "wait\t512x512\tsum": 7_000_500,
            "took\t512x512\t20": 1, "took\t512x512\tsum": 12_250,
            "done\t512x512\tmy model": 1, "failed\tOOM\tother": 3, "video\t512x512": 2000,
            "gpu\t512x512\tNVIDIA A10G": 12_250, "cost\t512x512": 4_083_333,
        }
    )  # fmt: skip
    assert counts.waits["512x512"].cumulative()[1:3] == [(0.5, 2), (1, 2)]
    assert counts.waits["512x512"].cumulative()[-2:] == [(3600, 2), (float("inf"), 3)]
    assert counts.waits["512x512"].sum_seconds == 7000.5
    assert counts.took["512x512"].counts[BOUNDS.index(20)] == 1
    assert counts.done_by_size_model == {("512x512", "my model"): 1}
    assert counts.failed_by_reason_size == {("OOM", "other"): 3}
    assert counts.video_seconds == {"512x512": 2.0}
    assert counts.gpu_seconds_by_size_model == {("512x512", "NVIDIA A10G"): 12.25}
    assert counts.cost_usd["512x512"] == pytest.approx(0.004083333)
    assert counts.sizes == {"512x512", "other"}


def test_fields_of_somebody_else_cost_nothing() -> None:
    fields = ("", "x", "done", "done\ta", "done\ta\tb\tc", "wait\ta\tsoon", "video\ta\tb", "new\ta")
    assert parse_counts(dict.fromkeys(fields, 1)).sizes <= {"a"}
    assert whole_numbers({"a": "1", "b": "-1", "c": "1.5", "d": "x", "e": "9" * 30, "f": "²"}) == {"a": 1}


def test_a_bound_of_another_version_counts_for_the_next_one() -> None:
    spread = Spread()
    spread.note("17", 2)
    spread.note("7200", 1)
    assert (spread.counts[BOUNDS.index(20)], spread.counts[-1]) == (2, 1)


def test_labels_are_short_and_plain() -> None:
    assert label_text("a\tb\nc\x00 d ") == "abc d"
    assert len(label_text("x" * 500)) == 80


def text_of(counts: Counts, *models: str) -> str:
    return write(job_families(counts, models), {"node_name": "a"}).decode()


def test_what_may_come_is_told_as_zero() -> None:
    text = text_of(parse_counts({"wait\t64x64\t1": 1}), "sd15")
    assert 'animatediff_job_failures_total{node_name="a",reason="GPU_LOST",resolution="64x64"} 0.0' in text
    assert 'animatediff_job_success_total{model="sd15",node_name="a",resolution="64x64"} 0.0' in text
    assert "CANCELLED" not in text


def test_a_host_that_has_met_nothing_tells_nothing() -> None:
    assert text_of(Counts(), "sd15") == ""


def test_a_spread_has_all_its_bounds() -> None:
    lines = text_of(parse_counts({"wait\t64x64\t1": 2, "wait\t64x64\tsum": 1500})).splitlines()
    buckets = [line for line in lines if line.startswith("animatediff_job_wait_seconds_bucket")]
    assert len(buckets) == len(BOUNDS) + 1
    assert buckets[-1] == 'animatediff_job_wait_seconds_bucket{le="+Inf",node_name="a",resolution="64x64"} 2.0'
    assert 'animatediff_job_wait_seconds_sum{node_name="a",resolution="64x64"} 1.5' in lines


def test_the_queues() -> None:
    text = write(queue_families({"default": Line(3, 1, 2.5), "special": Line(0, 0, 0)}), {"node_name": "a"}).decode()
    assert 'animatediff_job_queue_length{node_name="a",queue="default"} 3.0' in text
    assert 'animatediff_job_oldest_waiting_seconds{node_name="a",queue="special"} 0.0' in text


# --- counts that go back ---------------------------------------------------------------------------------------------


def test_what_a_failover_has_lost_is_held_until_it_is_counted_again() -> None:
    held = HeldCounts()
    assert held.update({"a": 10}, 0) == {"a": 10}
    assert held.update({"a": 9}, 1) == {"a": 10}
    assert held.update({"a": 10}, 2) == {"a": 10}
    assert held.update({"a": 11}, 3) == {"a": 11}


def test_what_stays_lost_is_counted_on_from() -> None:
    """An older backup was put back: no step down, which would count everything anew, and no standstill."""
    held = HeldCounts()
    held.update({"a": 1000, "b": 5}, 0)
    assert held.update({"a": 400}, 1) == {"a": 1000, "b": 5}
    assert held.update({"a": 410}, 1 + PATIENCE_SECONDS) == {"a": 1000, "b": 5}
    assert held.update({"a": 411, "b": 1}, 2 + PATIENCE_SECONDS) == {"a": 1001, "b": 6}


def test_a_dip_does_not_add_up_with_the_next_one() -> None:
    held = HeldCounts()
    for now in range(0, 1000, 60):
        assert held.update({"a": 10}, now) == {"a": 10}
        assert held.update({"a": 9}, now + 30) == {"a": 10}


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_process_tells_of_itself() -> None:
    own = own_figures()
    assert own.cpu_seconds > 0
    assert own.resident_bytes > 1 << 20
    told = ProcessFigures.parse(own.to_text(), own.at)
    assert told is not None
    assert told.resident_bytes == own.resident_bytes
    assert told.cpu_seconds == pytest.approx(own.cpu_seconds, abs=0.001)


@pytest.mark.parametrize("text", ["", "1 2", "1 2 3 4", "x 1 1000", "1 1.5 1000", f"1 1 {1000 - STALE_SECONDS - 1}"])
def test_what_is_no_figure_or_an_old_one(text: str) -> None:
    assert ProcessFigures.parse(text, 1000) is None


def test_processes_by_their_services() -> None:
    text = write(process_families({"agent-0": ProcessFigures(1.5, 2048, 0)}), {"node_name": "a"}).decode()
    assert 'process_cpu_seconds_total{job="agent-0",node_name="a"} 1.5' in text
    assert 'process_resident_memory_bytes{job="agent-0",node_name="a"} 2048.0' in text
