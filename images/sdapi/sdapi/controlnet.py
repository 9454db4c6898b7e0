"""The ControlNet extension's units, as far as they are plain: model, control image, weight, span."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdapi.errors import Problem
from sdapi.offer import Offer, find, some
from sdapi.reader import Reader

SCRIPT = "controlnet"
IMAGE_LIMIT = 15 << 20
UNITS = 2
UNITS_LISTED = 16
NOTHING = ("", "none")
BALANCED = ("balanced", "0", "")


def read_units(scripts: Mapping[str, Any], offer: Offer, problems: list[Problem]) -> list[dict[str, Any]]:
    """ControlNets as a job request has them; units that are not enabled are passed over."""
    for key, script in scripts.items():
        if key.lower() == SCRIPT:
            units = script.get("args") if isinstance(script, Mapping) else script
            where = ("alwayson_scripts", key, "args")
            if not isinstance(units, list):
                problems.append(Problem(where, "value is not a valid list", "type_error.list"))
                return []
            if len(units) > UNITS_LISTED:
                problems.append(Problem(where, f"at most {UNITS_LISTED} units can be listed"))
                return []
            read = [_read(unit, (*where, index), offer, problems) for index, unit in enumerate(units) if unit]
            enabled = [unit for unit in read if unit is not None]
            if len(enabled) > UNITS:
                problems.append(Problem(where, f"at most {UNITS} units can be enabled"))
            return enabled
    return []


def _read(unit: object, where: tuple[str | int, ...], offer: Offer, problems: list[Problem]) -> dict[str, Any] | None:
    if not isinstance(unit, Mapping):
        problems.append(Problem(where, "value is not a valid dict", "type_error.dict"))
        return None
    reader = Reader(unit, problems, *where)
    if not reader.flag("enabled", True):
        return None
    if reader.text("module", "none", 100).lower() not in NOTHING:
        reader.refuse("module", "preprocessors are not supported: send the control image itself, and module none")
    if str(reader.raw("control_mode", "")).lower() not in BALANCED:
        reader.refuse("control_mode", "only Balanced is supported")
    for name in ("mask", "mask_image"):
        if unit.get(name):
            reader.refuse(name, "masks are not supported")
    start, end = reader.number("guidance_start", 0.0, 0, 1), reader.number("guidance_end", 1.0, 0, 1)
    if start > end:
        reader.refuse("guidance_start", "is after guidance_end")
    return {
        "model": _model(reader, offer),
        "image": _image(reader),
        "weight": reader.number("weight", 1.0, 0, 2),
        "start": start,
        "end": end,
    }


def _model(reader: Reader, offer: Offer) -> str:
    name = reader.text("model", "", 200)
    found = None if name.lower() in NOTHING else find(name, offer.controlnets)
    if found is None:
        reader.refuse("model", f"ControlNet model {name!r} not found; there are: {some(offer.controlnets or ())}")
    return found or ""


def _image(reader: Reader) -> str:
    """A text, or upstream's older `{"image", "mask"}`, under either of its two names."""
    for name in ("image", "input_image"):
        value = reader.raw(name)
        value = value.get("image") if isinstance(value, Mapping) else value
        if isinstance(value, str) and 0 < len(value) <= IMAGE_LIMIT:
            return value
    reader.refuse("image", "there is no control image, or it is too large")
    return ""
