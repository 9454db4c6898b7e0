"""Task performance by resolution: how long jobs wait and take, how much comes out."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as build

from generator.dashboards.panels import (
    OF_SIZE,
    ON_NODE,
    ORANGE,
    RED,
    Query,
    bars,
    figure,
    new_dashboard,
    node_variable,
    resolution_variable,
    shares,
    timeline,
)

CHOSEN = f"{ON_NODE},{OF_SIZE}"
DONE = f"animatediff_job_success_total{{{CHOSEN}}}"


def dashboard() -> build.Dashboard:
    made = new_dashboard(
        "performance",
        "Task performance",
        "By resolution: how long jobs wait and take, how much video comes out of it, and what it takes of the GPUs.",
        node_variable(),
        resolution_variable(),
    )
    for row in (_overview, _waiting, _working, _models):
        row(made)
    return made


def _quantile(share: float, metric: str, by: str) -> str:
    return f"histogram_quantile({share}, sum by ({by}, le) (rate({metric}_bucket{{{CHOSEN}}}[$__rate_interval])))"


def _over_range(share: float, metric: str) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{{{CHOSEN}}}[$__range])))"


def _overview(made: build.Dashboard) -> None:
    made.with_row(build.Row("In the time shown"))
    made.with_panel(
        figure(
            "Jobs done",
            "Jobs that ended with a video.",
            "none",
            Query(f"sum(increase(animatediff_job_success_total{{{CHOSEN}}}[$__range]))", "done"),
        )
    )
    made.with_panel(
        figure(
            "Attempts that failed",
            "Of all attempts. Most of these jobs were tried again.",
            "percentunit",
            Query(
                f"sum(increase(animatediff_job_failures_total{{{CHOSEN}}}[$__range])) / "
                f"(sum(increase(animatediff_job_failures_total{{{CHOSEN}}}[$__range]))"
                f" + sum(increase(animatediff_job_success_total{{{CHOSEN}}}[$__range])))",
                "failed",
            ),
            limits=[(0.01, ORANGE), (0.05, RED)],
        )
    )
    made.with_panel(
        figure(
            "Wait, 95th percentile",
            "From a job's submission to its first attempt.",
            "s",
            Query(_over_range(0.95, "animatediff_job_wait_seconds"), "95 %"),
        )
    )
    made.with_panel(
        figure(
            "Duration, median",
            "Of the attempts that made the result.",
            "s",
            Query(_over_range(0.5, "animatediff_job_duration_seconds"), "median"),
        )
    )
    made.with_panel(
        figure(
            "Video made",
            "Length of all videos together.",
            "s",
            Query(f"sum(increase(animatediff_video_seconds_generated_total{{{CHOSEN}}}[$__range]))", "video"),
        )
    )
    made.with_panel(
        figure(
            "GPU seconds for one of video",
            "All attempts count, failed ones too.",
            "s",
            Query(
                f"sum(increase(animatediff_gpu_seconds_total{{{CHOSEN}}}[$__range])) / "
                f"sum(increase(animatediff_video_seconds_generated_total{{{CHOSEN}}}[$__range]))",
                "GPU seconds",
            ),
        )
    )


def _waiting(made: build.Dashboard) -> None:
    made.with_row(build.Row("Waiting"))
    for share, name in ((0.5, "median"), (0.95, "95th percentile")):
        made.with_panel(
            timeline(
                f"Wait, {name}",
                "From a job's submission to its first attempt.",
                "s",
                Query(_quantile(share, "animatediff_job_wait_seconds", "resolution"), "{{resolution}}"),
            )
        )
    made.with_panel(
        timeline(
            "Began in time",
            "Share of the jobs that began within monitoring.slo.wait_seconds.",
            "percentunit",
            Query("1 - animatediff:jobs_started_late:rate5m / animatediff:jobs_started:rate5m", "in time"),
            width=8,
        )
    )
    made.with_panel(
        shares(
            "In line",
            "Jobs that wait, by queue: special ones want what not every worker can do.",
            "none",
            Query("max by (queue) (animatediff_job_queue_length)", "{{queue}}"),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "Oldest in line",
            "How long the one that waits longest has waited.",
            "s",
            Query("max by (queue) (animatediff_job_oldest_waiting_seconds)", "{{queue}}"),
            width=8,
        )
    )


def _working(made: build.Dashboard) -> None:
    made.with_row(build.Row("Working"))
    for share, name in ((0.5, "median"), (0.95, "95th percentile")):
        made.with_panel(
            timeline(
                f"Duration, {name}",
                "Of the attempts that made a job's result, from claim to commit.",
                "s",
                Query(_quantile(share, "animatediff_job_duration_seconds", "resolution"), "{{resolution}}"),
            )
        )
    made.with_panel(
        timeline(
            "Duration by host, median",
            "The same: a host that is slower than others of its kind has something wrong with it.",
            "s",
            Query(
                _quantile(0.5, "animatediff_job_duration_seconds", "node_name, resolution"),
                "{{resolution}} on {{node_name}}",
            ),
        )
    )
    made.with_panel(
        shares(
            "Jobs done",
            "By resolution and host.",
            "cpm",
            Query(
                f"60 * sum by (node_name, resolution) (rate({DONE}[$__rate_interval]))",
                "{{resolution}} on {{node_name}}",
            ),
        )
    )
    made.with_panel(
        shares(
            "Video made",
            "Seconds of video in each second.",
            "none",
            Query(
                "sum by (node_name, resolution) ("
                f"rate(animatediff_video_seconds_generated_total{{{CHOSEN}}}[$__rate_interval]))",
                "{{resolution}} on {{node_name}}",
            ),
        )
    )
    made.with_panel(
        bars(
            "GPU seconds for one of video",
            "By resolution and GPU model, in the time shown.",
            "s",
            Query(
                f"sum by (resolution, gpu_model) (increase(animatediff_gpu_seconds_total{{{CHOSEN}}}[$__range]))"
                " / on (resolution) group_left ()"
                f" sum by (resolution) (increase(animatediff_video_seconds_generated_total{{{CHOSEN}}}[$__range]))",
                "{{resolution}} on {{gpu_model}}",
            ),
        )
    )


def _models(made: build.Dashboard) -> None:
    made.with_row(build.Row("Models and GPUs"))
    made.with_panel(
        timeline(
            "Loading models",
            "Mean time; cold: from storage, cached: from memory, switched: to another one.",
            "s",
            Query(
                "sum by (node_name, model, cache) "
                f"(rate(animatediff_model_load_time_seconds_sum{{{ON_NODE}}}[$__rate_interval]))"
                " / sum by (node_name, model, cache) "
                f"(rate(animatediff_model_load_time_seconds_count{{{ON_NODE}}}[$__rate_interval]))",
                "{{model}}, {{cache}}, on {{node_name}}",
            ),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "Steps",
            "Denoising steps of each worker.",
            "ops",
            Query(f"rate(webui_steps_total{{{ON_NODE}}}[$__rate_interval])", "{{worker}} on {{node_name}}"),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "Utilisation of the GPUs",
            "Mean of each host's.",
            "percentunit",
            Query(f"avg by (node_name) (nvidia_smi_utilization_gpu_ratio{{{ON_NODE}}})", "{{node_name}}"),
            width=8,
        )
    )
