"""The queue, the jobs of this host's workers and its processes → metrics 14, 15, 18 to 24 and 26 to 28. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from prometheus_client.core import Metric

from appliance.exporter.families import add_spread, counter, gauge, histogram
from appliance.job import Reason
from appliance.process_figures import ProcessFigures
from appliance.queue.counts import Counts, Spread
from appliance.queue.figures import Line

# Being cancelled is no failure.
_FAILURES = tuple(reason.value for reason in Reason if reason is not Reason.CANCELLED)


def queue_families(lines: Mapping[str, Line]) -> Iterator[Metric]:
    """The same on every host: to be looked at with `max by (queue)`."""
    by_queue = [({"queue": name}, line) for name, line in lines.items()]
    yield gauge(
        "animatediff_job_queue_length",
        "Jobs that wait for a worker; queue: default, or special for those that not every worker can run",
        ((labels, line.waiting) for labels, line in by_queue),
    )
    yield gauge(
        "animatediff_jobs_in_progress",
        "Jobs that a worker has",
        ((labels, line.running) for labels, line in by_queue),
    )
    yield gauge(
        "animatediff_job_oldest_waiting_seconds",
        "How long ago the oldest waiting job was submitted; 0 while none waits",
        ((labels, line.oldest_seconds) for labels, line in by_queue),
    )


def job_families(counts: Counts, models: Collection[str]) -> Iterator[Metric]:
    """`models` are told as 0 before they have made anything, as all reasons are: an increase is seen only against
    something."""
    sizes = counts.sizes
    waits = "From a job's submission to its first attempt, on this host's workers"
    yield _spreads("animatediff_job_wait_seconds", waits, counts.waits)
    yield counter(
        "animatediff_job_success_total",
        "Jobs that this host's workers have finished",
        (
            ({"resolution": size, "model": model}, number)
            for (size, model), number in _with_zeros(counts.done_by_size_model, sizes, models).items()
        ),
    )
    failed = {(size, reason): number for (reason, size), number in counts.failed_by_reason_size.items()}
    yield counter(
        "animatediff_job_failures_total",
        "Attempts that failed on this host's workers, and jobs whose deadline it found over; most jobs are tried again",
        (
            ({"reason": reason, "resolution": size}, number)
            for (size, reason), number in _with_zeros(failed, sizes, _FAILURES).items()
        ),
    )
    took = "How long the attempts took that made a job's result, from claim to commit"
    yield _spreads("animatediff_job_duration_seconds", took, counts.took)
    yield counter(
        "animatediff_video_seconds_generated_total",
        "Length of the videos that this host's workers have made",
        (({"resolution": size}, seconds) for size, seconds in counts.video_seconds.items()),
    )
    yield counter(
        "animatediff_gpu_seconds_total",
        "How long attempts, failed ones too, have had this host's GPUs",
        (
            ({"resolution": size, "gpu_model": model}, seconds)
            for (size, model), seconds in counts.gpu_seconds_by_size_model.items()
        ),
    )
    yield counter(
        "animatediff_job_cost_usd_total",
        "What those GPU seconds have cost, by the prices of their time",
        (({"resolution": size}, usd) for size, usd in counts.cost_usd.items()),
    )


def heartbeat_family(heartbeats: Mapping[str, float]) -> Metric:
    return gauge(
        "animatediff_worker_last_heartbeat_timestamp_seconds",
        "When a worker of this host was last heard, by the clock of Redis; 0: never",
        (({"worker": worker}, moment) for worker, moment in heartbeats.items()),
    )


def process_families(processes: Mapping[str, ProcessFigures]) -> Iterator[Metric]:
    """`job` is the service's name in the host's compose file."""
    yield counter(
        "process_cpu_seconds_total",
        "User and system CPU time of the service's process",
        (({"job": service}, figures.cpu_seconds) for service, figures in processes.items()),
    )
    yield gauge(
        "process_resident_memory_bytes",
        "Resident memory of the service's process",
        (({"job": service}, figures.resident_bytes) for service, figures in processes.items()),
    )


def _spreads(name: str, help_: str, spreads: Mapping[str, Spread]) -> Metric:
    family = histogram(name, help_)
    for size, spread in spreads.items():
        add_spread(family, {"resolution": size}, spread.cumulative(), spread.sum_seconds)
    return family


def _with_zeros(
    known: Mapping[tuple[str, str], int], sizes: Collection[str], others: Collection[str]
) -> dict[tuple[str, str], int]:
    return {**{(size, other): 0 for size in sorted(sizes) for other in others}, **known}
