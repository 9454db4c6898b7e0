from __future__ import annotations

import os
import time

import pytest

from appliance import healthcheck, lifecycle
from appliance.__main__ import main


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"], {})
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for verb in ("api", "agent", "controller", "relay", "elasticsearch-setup", "storage-init", "healthcheck"):
        assert verb in text


def test_missing_settings_are_named_and_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agent"], {}) == 1
    errors = capsys.readouterr().err
    assert "APPLIANCE_WORKER" in errors
    assert "redis_password" in errors


def test_the_agents_heartbeat_ages(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["healthcheck", "agent"], {}) == 1
    lifecycle.touch_heartbeat("agent")
    assert main(["healthcheck", "agent"], {}) == 0
    old = time.time() - healthcheck.HEARTBEAT_LIMIT_SECONDS - 5
    os.utime(lifecycle.heartbeat_path("agent"), (old, old))
    assert main(["healthcheck", "agent"], {}) == 1


def test_http_health_needs_an_answer() -> None:
    assert main(["healthcheck", "http", "http://127.0.0.1:1/"], {}) == 1
    assert main(["healthcheck", "http", "file:///etc/passwd"], {}) == 1
    with pytest.raises(SystemExit):
        main(["healthcheck", "http"], {})


def test_the_api_check_follows_the_listen_port() -> None:
    assert healthcheck.own_url("api", {"APPLIANCE_LISTEN": "0.0.0.0:8123"}) == "http://127.0.0.1:8123/healthz"
