from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.controller.policy import Target
from appliance.controller.settings import read_controller_settings
from appliance.errors import SettingsError

TARGETS = (
    '{"webui": [{"name": "gpu-01/0", "address": "webui-0:7860"}], "api": [{"name": "gpu-01", "address": "[::1]:8000"}]}'
)


Read = Callable[..., tuple[Target, ...]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    (tmp_path / "redis_password").write_text("secret")
    fixed = {"APPLIANCE_NODE_NAME": "gpu-01", "APPLIANCE_SECRETS_DIR": str(tmp_path)}

    def read_targets(targets: str, **more: str) -> tuple[Target, ...]:
        return read_controller_settings({**fixed, "APPLIANCE_CONTROLLER_TARGETS": targets, **more}).targets

    return read_targets


def test_targets_of_both_pools_are_read(read: Read) -> None:
    assert read(TARGETS) == (Target("api", "gpu-01", "::1", 8000), Target("webui", "gpu-01/0", "webui-0", 7860))


@pytest.mark.parametrize(
    ("targets", "complaint"),
    [
        ("{", "is no JSON"),
        ("[]", "must be an object"),
        ('{"web": []}', "must be an object"),
        ('{"api": [3]}', "api[0].name"),
        ('{"api": [{"name": "a b", "address": "h:1"}]}', "api[0].name"),
        ('{"webui": [{"name": "a", "address": "h"}]}', "webui[0].address"),
        ('{"webui": [{"name": "a", "address": "h:0"}]}', "webui[0].address"),
        ('{"webui": 3}', "webui"),
        ('{"webui": [{"name": "a", "address": "h:1"}, {"name": "a", "address": "h:2"}]}', "twice"),
    ],
)
def test_a_wrong_target_is_named(read: Read, targets: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(targets)
    assert complaint in str(caught.value)


def test_every_problem_is_told_at_once(read: Read) -> None:
    with pytest.raises(SettingsError) as caught:
        read('{"api": [3]}', APPLIANCE_PROBE_TIMEOUT_SECONDS="soon")
    assert len(caught.value.problems) == 2
