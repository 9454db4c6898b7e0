"""What the dashboards have in common: panels of one style, each with a unit and a description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from string import ascii_uppercase
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus as query_builders
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus as query_model

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${source}")
ON_NODE = 'node_name=~"$node"'
OF_SIZE = 'resolution=~"$resolution"'
WIDTH = 24
ALL = model.VariableOption(selected=True, text="All", value="$__all")
GREEN, ORANGE, RED = "green", "orange", "red"
States = Sequence[tuple[str, str, str]]
"""(value as Prometheus gives it, text, colour)"""
P = TypeVar("P", timeseries.Panel, stat.Panel, statetimeline.Panel, bargauge.Panel, table.Panel)


@dataclass(frozen=True)
class Query:
    """`legend`: with the label of whatever the series differ by, `{{node_name}}` where they have it."""

    expr: str
    legend: str


def timeline(title: str, description: str, unit: str, *queries: Query, width: int = 12) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(8)
        .show_points(common_model.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_model.LegendDisplayMode.TABLE)
            .placement(common_model.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_model.TooltipDisplayMode.MULTI)
            .sort(common_model.SortOrder.DESCENDING)
        )
    )
    return _common(panel, title, description, unit, queries, width, height=9)


def shares(title: str, description: str, unit: str, *queries: Query, width: int = 12) -> timeseries.Panel:
    """Parts of a whole, one upon the other."""
    stacked = common.StackingConfig().mode(common_model.StackingMode.NORMAL)
    return timeline(title, description, unit, *queries, width=width).stacking(stacked).fill_opacity(30)


def figure(
    title: str, description: str, unit: str, query: Query, *, limits: Sequence[tuple[float, str]] = (), width: int = 4
) -> stat.Panel:
    """One number. `limits`: from which value on it has which colour."""
    panel = (
        stat.Panel()
        .graph_mode(common_model.BigValueGraphMode.AREA if not limits else common_model.BigValueGraphMode.NONE)
        .color_mode(common_model.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(thresholds(limits))
        .no_value("none")
    )
    return _common(panel, title, description, unit, [query], width, height=4)


def bars(title: str, description: str, unit: str, query: Query, *, width: int = 12) -> bargauge.Panel:
    panel = (
        bargauge.Panel()
        .orientation(common_model.VizOrientation.HORIZONTAL)
        .display_mode(common_model.BarGaugeDisplayMode.GRADIENT)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .min(0)
    )
    return _common(panel, title, description, unit, [query], width, height=9, instant=True)


def states(title: str, description: str, query: Query, known: States, *, width: int = 24) -> statetimeline.Panel:
    options = {
        value: model.ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, text, colour) in enumerate(known)
    }
    panel = (
        statetimeline.Panel()
        .mappings([model.ValueMap(options=options)])
        .show_value(common_model.VisibilityMode.NEVER)
        .row_height(0.8)
        .merge_values(True)
    )
    return _common(panel, title, description, "none", [query], width, height=9)


def listing(title: str, description: str, unit: str, *queries: Query, width: int = 12) -> table.Panel:
    """The newest values as a table, one row for each series."""
    panel = (
        table.Panel()
        .sort_by([common.TableSortByFieldState().display_name("Value").desc(True)])
        .with_transformation(model.DataTransformerConfig(id_val="labelsToFields", options={"mode": "columns"}))
        .with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            model.DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True, "__name__": True}})
        )
    )
    return _common(panel, title, description, unit, queries, width, height=9, instant=True)


def thresholds(limits: Sequence[tuple[float, str]]) -> build.ThresholdsConfig:
    first = limits[0][1] if limits and limits[0][0] == float("-inf") else GREEN
    steps = [model.Threshold(value=None, color=first)]
    steps += [model.Threshold(value=value, color=colour) for value, colour in limits if value != float("-inf")]
    return build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def _common(
    panel: P,
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    width: int,
    *,
    height: int,
    instant: bool = False,
) -> P:
    panel.title(title).description(description).unit(unit).datasource(SOURCE).span(width).height(height)
    for letter, query in zip(ascii_uppercase, queries, strict=False):
        built = (
            query_builders.Dataquery()
            .expr(query.expr)
            .legend_format(query.legend)
            .ref_id(letter)
            .datasource(SOURCE)
            .editor_mode(query_model.QueryEditorMode.CODE)
        )
        panel.with_target(
            built.instant().format(query_model.PromQueryFormat.TABLE)
            if isinstance(panel, table.Panel)
            else built.instant()
            if instant
            else built.range()
        )
    return panel


def new_dashboard(uid: str, title: str, description: str, *variables: build.QueryVariable) -> build.Dashboard:
    """Nobody changes it in the browser: it comes from this project."""
    made = (
        build.Dashboard(title)
        .uid(f"animatediff-{uid}")
        .description(description)
        .tags(["animatediff"])
        .readonly()
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            build.DatasourceVariable("source")
            .label("Prometheus")
            .description("Each monitoring host has one of its own, and each has everything.")
            .type("prometheus")
            .current(model.VariableOption(selected=True, text="Prometheus", value="prometheus"))
            .regex("Prometheus on .*")
        )
    )
    for variable in variables:
        made.with_variable(variable)
    links = build.DashboardLink("AnimateDiff").type(model.DashboardLinkType.DASHBOARDS).tags(["animatediff"])
    return made.link(links.as_dropdown(False).keep_time(True).include_vars(True).icon("external link"))


def node_variable() -> build.QueryVariable:
    return _choice("node", "Host", 'label_values(up{job="node"}, node_name)')


def resolution_variable() -> build.QueryVariable:
    return _choice("resolution", "Resolution", "label_values(animatediff_job_success_total, resolution)")


def _choice(name: str, label: str, query: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(SOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(ALL)
    )


def numbered(made: build.Dashboard) -> model.Dashboard:
    """With an id for each panel, the same each time."""
    built = made.build()
    numbers = count(1)
    for panel in built.panels or []:
        panel.id_val = next(numbers)
    for variable in built.templating.list_val or []:
        # Of variables that are intervals, which these are not; the library fills them in for all.
        variable.auto = variable.auto_min = variable.auto_count = None
    return built
