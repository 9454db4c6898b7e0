"""Cost: what a second of video costs, what runs for nothing, what the bill says."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as build

from generator.dashboards.panels import (
    OF_SIZE,
    ON_NODE,
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
PRICES = f"animatediff_node_price_usd_per_hour{{{ON_NODE}}}"
# The sum before the mean, and 0 while Prometheus saw none: each series of a price has only its own host's and market's
# time.
PAID = f"avg_over_time((sum({PRICES}) or 0 * count(up))[$__range:1m])"
WORKED = f"animatediff_job_cost_usd_total{{{CHOSEN}}}"


def dashboard() -> build.Dashboard:
    made = new_dashboard(
        "cost",
        "Cost",
        "By the prices in cluster.yaml: what a second of video costs, what stands idle; and AWS's own bill.",
        node_variable(),
        resolution_variable(),
    )
    for row in (_overview, _video, _hosts, _bill):
        row(made)
    return made


def _overview(made: build.Dashboard) -> None:
    made.with_row(build.Row("Now, and in the time shown"))
    made.with_panel(
        figure(
            "The cluster costs",
            "By the prices in cluster.yaml, busy or not.",
            "currencyUSD",
            Query(f"sum({PRICES})", "in an hour"),
        )
    )
    made.with_panel(
        figure(
            "Cost of the work",
            "Of the time that GPUs worked.",
            "currencyUSD",
            Query(f"sum(increase({WORKED}[$__range]))", "work"),
        )
    )
    made.with_panel(
        figure(
            "Stood idle",
            "Share of what was paid for that no job used.",
            "percentunit",
            Query(
                f"1 - clamp_max(sum(rate({WORKED}[$__range])) * 3600 / {PAID}, 1)",
                "idle",
            ),
        )
    )
    made.with_panel(
        figure(
            "A second of video",
            "For the time that GPUs worked on it, over all resolutions.",
            "currencyUSD",
            Query(
                f"sum(increase({WORKED}[$__range]))"
                f" / sum(increase(animatediff_video_seconds_generated_total{{{CHOSEN}}}[$__range]))",
                "USD",
            ),
        )
    )
    made.with_panel(
        figure(
            "With what stood idle",
            "The same with the whole cluster's cost.",
            "currencyUSD",
            Query(
                f"{PAID} * $__range_s / 3600"
                f" / sum(increase(animatediff_video_seconds_generated_total{{{CHOSEN}}}[$__range]))",
                "USD",
            ),
        )
    )
    made.with_panel(
        figure(
            "Energy",
            "What the GPUs drew.",
            "joule",
            Query(f"sum(increase(nvidia_smi_energy_joules_total{{{ON_NODE}}}[$__range]))", "GPUs"),
        )
    )


def _video(made: build.Dashboard) -> None:
    made.with_row(build.Row("A second of video"))
    for basis, title, description in (
        ("gpu_time", "For the time that GPUs worked", "Mean of six hours. Failed attempts count."),
        (
            "cluster",
            "With what stood idle",
            "Mean of six hours: the whole cluster's cost, by the time that GPUs worked.",
        ),
    ):
        made.with_panel(
            timeline(
                title,
                description,
                "currencyUSD",
                Query(f'animatediff_cost_usd_per_video_second{{basis="{basis}",{OF_SIZE}}}', "{{resolution}}"),
            )
        )
    made.with_panel(
        bars(
            "Cost of the work, by resolution",
            "In the time shown.",
            "currencyUSD",
            Query(f"sum by (resolution) (increase({WORKED}[$__range]))", "{{resolution}}"),
        )
    )
    made.with_panel(
        shares(
            "Cost of the work, by host",
            "In an hour.",
            "currencyUSD",
            Query(
                f"3600 * sum by (node_name, resolution) (rate({WORKED}[$__rate_interval]))",
                "{{resolution}} on {{node_name}}",
            ),
        )
    )


def _hosts(made: build.Dashboard) -> None:
    made.with_row(build.Row("Hosts"))
    made.with_panel(
        shares(
            "Price",
            "Of each host in an hour, by the market that the price is of.",
            "currencyUSD",
            Query(f"sum by (node_name, source) ({PRICES})", "{{node_name}}, {{source}}"),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "Used",
            "Share of what a host costs that jobs used.",
            "percentunit",
            Query(
                f"3600 * sum by (node_name) (rate(animatediff_job_cost_usd_total{{{ON_NODE}}}[$__rate_interval]))"
                f" / (sum by (node_name) ({PRICES}) > 0)",
                "{{node_name}}",
            ),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "Power",
            "What the GPUs of each host draw.",
            "watt",
            Query(
                f"sum by (node_name) (rate(nvidia_smi_energy_joules_total{{{ON_NODE}}}[$__rate_interval]))",
                "{{node_name}}",
            ),
            width=8,
        )
    )


def _bill(made: build.Dashboard) -> None:
    made.with_row(build.Row("AWS"))
    made.with_panel(
        listing(
            "The bill, by service",
            "Of the month that yesterday is in; final: AWS has closed those days. Nothing where none came for a day.",
            "currencyUSD",
            Query("max by (service, final) (animatediff_aws_cost_usd)", "{{service}} {{final}}"),
            width=16,
        )
    )
    made.with_panel(
        figure(
            "The bill so far",
            "All services of the month that yesterday is in.",
            "currencyUSD",
            Query("sum(max by (service, final) (animatediff_aws_cost_usd))", "USD"),
        )
    )
    made.with_panel(
        figure(
            "Questions to Cost Explorer",
            "Pages asked for in the time shown; each costs a cent.",
            "none",
            Query("sum(increase(animatediff_cost_explorer_requests_total[$__range]))", "pages"),
        )
    )
