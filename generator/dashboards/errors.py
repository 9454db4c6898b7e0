"""Error causes: what fails, where, and what it has in common."""

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
    listing,
    new_dashboard,
    node_variable,
    resolution_variable,
    shares,
    timeline,
)

CHOSEN = f"{ON_NODE},{OF_SIZE}"
FAILED = f"animatediff_job_failures_total{{{CHOSEN}}}"
DONE = f"animatediff_job_success_total{{{CHOSEN}}}"


def dashboard() -> build.Dashboard:
    made = new_dashboard(
        "errors",
        "Error causes",
        "Attempts that failed: for which reason, at which resolution, on which host, and what broke at that time.",
        node_variable(),
        resolution_variable(),
    )
    for row in (_overview, _causes, _hardware, _around):
        row(made)
    return made


def _overview(made: build.Dashboard) -> None:
    made.with_row(build.Row("In the time shown"))
    made.with_panel(
        figure(
            "Attempts that failed",
            "Most of these jobs were tried again.",
            "none",
            Query(f"sum(increase({FAILED}[$__range]))", "failed"),
        )
    )
    for title, reason, description in (
        (
            "Out of memory",
            "OOM",
            "Attempts for which the GPU's memory was too small; each is answered by a cheaper one.",
        ),
        ("Workers lost", "WORKER_LOST", "Attempts whose worker went away; their jobs went on elsewhere."),
        ("GPUs lost", "GPU_LOST", "Attempts that ended with their GPU."),
        ("Time over", "TIMEOUT", "Attempts that took too long, and jobs whose deadline passed."),
        ("Models not loaded", "MODEL_LOAD_FAIL", "Attempts for which a model was missing or broken."),
    ):
        expr = f'sum(increase(animatediff_job_failures_total{{reason="{reason}",{CHOSEN}}}[$__range])) or vector(0)'
        made.with_panel(figure(title, description, "none", Query(expr, reason), limits=[(1, ORANGE), (20, RED)]))


def _causes(made: build.Dashboard) -> None:
    made.with_row(build.Row("Causes"))
    made.with_panel(
        shares(
            "By reason",
            "Attempts that failed, in a minute.",
            "cpm",
            Query(f"60 * sum by (reason) (rate({FAILED}[$__rate_interval])) > 0", "{{reason}}"),
        )
    )
    made.with_panel(
        shares(
            "By host",
            "One host that fails more than others of its kind has something wrong with it.",
            "cpm",
            Query(
                f"60 * sum by (node_name, reason) (rate({FAILED}[$__rate_interval])) > 0", "{{reason}} on {{node_name}}"
            ),
        )
    )
    made.with_panel(
        timeline(
            "Share of attempts that fail, by resolution",
            "Larger ones run out of memory first.",
            "percentunit",
            Query(
                f"sum by (resolution) (rate({FAILED}[$__rate_interval]))"
                f" / (sum by (resolution) (rate({FAILED}[$__rate_interval]))"
                f" + sum by (resolution) (rate({DONE}[$__rate_interval])))",
                "{{resolution}}",
            ),
        )
    )
    made.with_panel(
        timeline(
            "Share of attempts that fail, by host",
            "Over all resolutions.",
            "percentunit",
            Query(
                f"sum by (node_name) (rate({FAILED}[$__rate_interval]))"
                f" / (sum by (node_name) (rate({FAILED}[$__rate_interval]))"
                f" + sum by (node_name) (rate({DONE}[$__rate_interval])))",
                "{{node_name}}",
            ),
        )
    )
    made.with_panel(
        listing(
            "Where they meet",
            "Attempts that failed in the time shown, by reason, resolution and host.",
            "none",
            Query(
                f"sum by (reason, resolution, node_name) (increase({FAILED}[$__range])) > 0",
                "{{reason}} {{resolution}} {{node_name}}",
            ),
        )
    )
    made.with_panel(
        bars(
            "Generations, by outcome",
            "As the webuis themselves count them, in the time shown.",
            "none",
            Query(
                f"sum by (node_name, outcome) (increase(webui_generations_total{{{ON_NODE}}}[$__range])) > 0",
                "{{outcome}} on {{node_name}}",
            ),
        )
    )


def _hardware(made: build.Dashboard) -> None:
    made.with_row(build.Row("Hardware"))
    gpu = "{{node_name}} GPU {{gpu_id}}"
    made.with_panel(
        timeline(
            "Xids",
            "What the driver reported within ten minutes. 79: the GPU fell off the bus; 13, 31: a program's mistake.",
            "none",
            Query(f"increase(nvidia_smi_xid_errors_total{{{ON_NODE}}}[10m])", f"{gpu}: xid {{{{xid}}}}"),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "Memory errors",
            "ECC errors within an hour; uncorrected ones are an alert.",
            "none",
            Query(f"increase(nvidia_smi_ecc_errors_total{{{ON_NODE}}}[1h])", f"{gpu}: {{{{type}}}}"),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "GPUs that answer",
            "0 for one that is lost.",
            "none",
            Query(f"nvidia_smi_gpu_up{{{ON_NODE}}}", gpu),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "Memory in use",
            "Of each GPU, without what torch only keeps.",
            "percentunit",
            Query(f"animatediff:gpu_memory:ratio{{{ON_NODE}}}", gpu),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "Engines started anew",
            "Of each worker within an hour: after a crash, a hang, or when it was poisoned by an error.",
            "none",
            Query(f"increase(webui_engine_starts_total{{{ON_NODE}}}[1h])", "{{worker}} on {{node_name}}"),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "Memory of the engines",
            "One that only grows will be ended by the kernel.",
            "bytes",
            Query(f"webui_engine_resident_memory_bytes{{{ON_NODE}}}", "{{worker}} on {{node_name}}"),
            width=8,
        )
    )


def _around(made: build.Dashboard) -> None:
    made.with_row(build.Row("Around it"))
    made.with_panel(
        timeline(
            "Requests that fail",
            "Answers of 500 and more, by what was asked and which gateway asked.",
            "reqps",
            Query(
                "sum by (node_name, pool, upstream) "
                f'(rate(nginx_upstream_responses_total{{status=~"5..",{ON_NODE}}}[$__rate_interval]))',
                "{{pool}} {{upstream}}, asked by {{node_name}}",
            ),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "Nodes that change their state",
            "Into down or quarantine, within ten minutes.",
            "none",
            Query(
                "sum by (node_name, node, state) "
                f'(increase(animatediff_node_state_changes_total{{state=~"DOWN|QUARANTINED",{ON_NODE}}}[10m]))',
                "{{node}} {{state}}, seen by {{node_name}}",
            ),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "Sources that exporters cannot ask",
            "0 while one is out of reach: what it would tell is missing above.",
            "none",
            Query(f"animatediff_exporter_source_up{{{ON_NODE}}}", "{{source}} of {{node_name}}"),
            width=8,
        )
    )
