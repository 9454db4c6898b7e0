"""Puts other values into the text of a cluster.yaml and leaves every other character, comments too, as it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import yaml

from generator.errors import UserError
from generator.marks import Path, show_path


def with_values(text: str, values: Mapping[Path, str], file: str) -> str:
    """`text` with these scalars. `UserError` with what to write by hand where one does not stand there."""
    root = _root(text, file)
    found = [(path, _scalar(root, path)) for path in values]
    absent = [path for path, node in found if node is None]
    if absent:
        lines = "\n".join(f"  {show_path(path)}: {json.dumps(values[path])}" for path in values)
        raise UserError(f"{file}: has no {show_path(absent[0])}; write it by hand:\n{lines}")
    nodes = sorted(((node, values[path]) for path, node in found if node), key=lambda one: -one[0].start_mark.index)
    for node, value in nodes:  # from the end: what comes before keeps its place
        text = text[: node.start_mark.index] + json.dumps(value) + text[node.end_mark.index :]
    return text


def values_at(text: str, paths: Iterable[Path], file: str) -> dict[Path, str | None]:
    """What stands there; None where there is no scalar."""
    root = _root(text, file)
    found = {path: _scalar(root, path) for path in paths}
    return {path: None if node is None else str(node.value) for path, node in found.items()}


def _root(text: str, file: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{file}: is no YAML: {error}") from error


def _scalar(node: yaml.Node | None, path: Path) -> yaml.ScalarNode | None:
    for key in path:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for name, value in node.value if name.value == key), None)
    return node if isinstance(node, yaml.ScalarNode) else None
