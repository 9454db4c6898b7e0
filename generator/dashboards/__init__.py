"""Grafana's dashboards, built with its own typed library: `python -m generator.dashboards` writes their JSON into
`config/grafana/dashboards`, where rendering finds it like any other file. A test holds the two together."""
