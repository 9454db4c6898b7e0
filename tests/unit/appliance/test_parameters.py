"""What is told of a job's parameters: those worth comparing, and nothing that is the user's own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.job import JobRequest
from appliance.parameters import KEPT_CHARS, describe_for_log, parameters_to_keep
from tests.unit.appliance.test_job import CONTROL, PNG, SPARSE


def test_the_log_shows_parameters_with_defaults_but_no_prompt() -> None:
    shown = describe_for_log({"prompt": "secret wish", "steps": 3, "loras": [{"name": "l"}]})
    assert "secret wish" not in json.dumps(shown)
    assert (shown["steps"], shown["width"], shown["format"], shown["loras"]) == (3, 512, ["mp4"], ["l"])


def test_the_log_names_pictures_and_never_shows_them() -> None:
    pictures = {"init_image": PNG, "controlnets": [CONTROL], "sparse_control": SPARSE, "free_init": {}}
    full = JobRequest.model_validate({"prompt": "a", **pictures}).canonical_json()
    shown = describe_for_log(json.loads(full))
    assert PNG not in json.dumps(shown)
    assert shown["pictures"] == ["init_image", "controlnets", "sparse_control"]
    assert (shown["controlnets"], shown["sparse_control"], shown["free_init"]) == (["c"], "s", 3)


def test_what_is_kept_of_a_request_holds_no_prompt_and_no_picture() -> None:
    request = {"prompt": "secret", "init_image": "iVBOR", "metadata": {"a": 1}, "steps": 9, "loras": [{"name": "l"}]}
    kept = json.loads(parameters_to_keep(request))
    assert (kept["steps"], kept["loras"], kept["pictures"], kept["width"]) == (9, ["l"], ["init_image"], 512)
    assert not {"prompt", "metadata", "model", "closed_loop"} & kept.keys()
    assert len(parameters_to_keep({})) < 200


@pytest.mark.parametrize(
    "asked", [{"loras": 7}, {"loras": ["x"]}, {"sparse_control": "x"}, {"model": "m" * KEPT_CHARS}]
)
def test_what_cannot_be_kept_is_not(asked: dict[str, Any]) -> None:
    assert parameters_to_keep(asked) == ""
