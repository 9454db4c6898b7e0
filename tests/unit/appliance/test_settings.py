from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.errors import SettingsError
from appliance.settings import Address, Secret, read_agent_settings, read_api_settings


@pytest.fixture
def agent_environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "redis_password").write_text("hunter2\n")
    (tmp_path / "cluster_token").write_text("token-value")
    return {
        "APPLIANCE_SECRETS_DIR": str(tmp_path),
        "APPLIANCE_NODE_NAME": "gpu-01",
        "APPLIANCE_WORKER": "gpu-01/0",
        "APPLIANCE_WEBUI_URL": "http://webui-0:7860/",
    }


def test_defaults(agent_environment: dict[str, str]) -> None:
    settings = read_agent_settings(agent_environment)
    queue = settings.queue
    assert settings.redis.address == Address("redis", 6379)
    assert settings.webui_url == "http://webui-0:7860"
    assert (queue.lease_seconds, queue.beat_seconds, queue.failover_grace_seconds) == (2.5, 0.5, 6)
    assert (settings.stream_silence_seconds, settings.no_progress_seconds, settings.drain_seconds) == (2, 120, 20)


def test_a_foreign_a1111_is_asked_for_by_name(agent_environment: dict[str, str], tmp_path: Path) -> None:
    assert read_agent_settings(agent_environment).a1111 is None
    foreign = {**agent_environment, "APPLIANCE_WEBUI_ENGINE": "a1111"}
    with pytest.raises(SettingsError, match="APPLIANCE_MOTION_MODULE"):
        read_agent_settings(foreign)
    settings = read_agent_settings({**foreign, "APPLIANCE_MOTION_MODULE": "mm_sd15_v3"})
    assert settings.a1111 is not None
    assert (settings.a1111.url, settings.a1111.auth.reveal()) == ("http://webui-0:7860", "")
    (tmp_path / "a1111_auth").write_text("ada:s3cret\n")
    settings = read_agent_settings({**foreign, "APPLIANCE_MOTION_MODULE": "mm_sd15_v3"})
    assert settings.a1111 is not None
    assert settings.a1111.auth.reveal() == "ada:s3cret"
    assert "s3cret" not in repr(settings)
    with pytest.raises(SettingsError, match="not one of own, a1111"):
        read_agent_settings({**agent_environment, "APPLIANCE_WEBUI_ENGINE": "comfy"})


def test_secrets_never_show(agent_environment: dict[str, str]) -> None:
    settings = read_agent_settings(agent_environment)
    assert settings.redis.password.reveal() == "hunter2"
    for text in (repr(settings), str(settings), f"{settings.redis.password}"):
        assert "hunter2" not in text
        assert "token-value" not in text
    assert str(Secret("x")) == "Secret(***)"


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    environment = {
        "APPLIANCE_SECRETS_DIR": str(tmp_path / "none"),
        "APPLIANCE_LEASE_SECONDS": "soon",
        "APPLIANCE_QUEUE_LIMIT": "0",
        "APPLIANCE_REDIS_ADDRESS": "redis",
        "APPLIANCE_WEBUI_URL": "webui:7860",
        "APPLIANCE_LOG_LEVEL": "loud",
    }
    with pytest.raises(SettingsError) as caught:
        read_agent_settings(environment)
    named = {re.split(": ", problem)[0].rsplit("/", 1)[-1] for problem in caught.value.problems}
    assert named == {
        "APPLIANCE_LEASE_SECONDS",
        "APPLIANCE_QUEUE_LIMIT",
        "APPLIANCE_REDIS_ADDRESS",
        "APPLIANCE_WEBUI_URL",
        "APPLIANCE_LOG_LEVEL",
        "APPLIANCE_NODE_NAME",
        "APPLIANCE_WORKER",
        "redis_password",
        "cluster_token",
    }


def test_a_lease_needs_room_for_two_beats(agent_environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="two beats"):
        read_agent_settings({**agent_environment, "APPLIANCE_LEASE_SECONDS": "1", "APPLIANCE_BEAT_SECONDS": "0.6"})


def test_nan_is_no_duration(agent_environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="APPLIANCE_DRAIN_SECONDS"):
        read_agent_settings({**agent_environment, "APPLIANCE_DRAIN_SECONDS": "nan"})


def test_sentinels_replace_the_address(agent_environment: dict[str, str]) -> None:
    sentinels = {"APPLIANCE_SENTINELS": "a:26379, b:26379,[fd00::1]:26379"}
    redis = read_agent_settings({**agent_environment, **sentinels}).redis
    assert redis.address is None
    assert [str(address) for address in redis.sentinels] == ["a:26379", "b:26379", "[fd00::1]:26379"]
    with pytest.raises(SettingsError, match="not both"):
        read_agent_settings({**agent_environment, **sentinels, "APPLIANCE_REDIS_ADDRESS": "redis:6379"})


def test_the_api_needs_its_key_file(agent_environment: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="api_keys"):
        read_api_settings(agent_environment)
    (tmp_path / "api_keys").write_text("")
    assert read_api_settings(agent_environment).listen.port == 8000


def test_user_weights_are_a_json_object(agent_environment: dict[str, str]) -> None:
    agent_environment["APPLIANCE_USER_WEIGHTS"] = '{"studio": 3, "guest": 0.5}'
    assert read_agent_settings(agent_environment).queue.user_weights == {"studio": 3, "guest": 0.5}


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 0}', '{"a": 101}', '{"a": true}', '{"a": "2"}', '{"a": NaN}'])
def test_other_user_weights_are_refused(agent_environment: dict[str, str], text: str) -> None:
    agent_environment["APPLIANCE_USER_WEIGHTS"] = text
    with pytest.raises(SettingsError, match="APPLIANCE_USER_WEIGHTS"):
        read_agent_settings(agent_environment)
