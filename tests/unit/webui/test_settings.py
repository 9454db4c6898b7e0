from __future__ import annotations

from pathlib import Path

import pytest

from webui.settings import EngineSettings, SettingsError, listen_address, read_settings


@pytest.fixture
def secrets_dir(tmp_path: Path) -> Path:
    (tmp_path / "cluster_token").write_text("s3cret-token\n")
    return tmp_path


def test_defaults_follow_the_table(secrets_dir: Path) -> None:
    settings = read_settings({"APPLIANCE_SECRETS_DIR": str(secrets_dir), "APPLIANCE_ENGINE": "synthetic"})
    assert (settings.host, settings.port) == ("0.0.0.0", 7860)
    assert settings.stop_seconds == 10
    assert settings.engine == EngineSettings()


def test_the_token_is_read_without_its_newline_and_never_shown(secrets_dir: Path) -> None:
    settings = read_settings({"APPLIANCE_SECRETS_DIR": str(secrets_dir), "APPLIANCE_ENGINE": "synthetic"})
    assert settings.cluster_token.value == "s3cret-token"
    assert "s3cret" not in f"{settings!r} {settings.cluster_token}"


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    environ = {
        "APPLIANCE_SECRETS_DIR": str(tmp_path / "none"),
        "APPLIANCE_ENGINE": "diffusers",
        "APPLIANCE_DEVICE": "tpu",
        "APPLIANCE_MOTION_MODULE": "../secret",
        "APPLIANCE_THREADS": "many",
        "APPLIANCE_LISTEN": "7860",
        "APPLIANCE_SYNTHETIC_FAULTS": "[1]",
    }
    with pytest.raises(SettingsError) as raised:
        read_settings(environ)
    named = {line.split(":")[0] for line in str(raised.value).splitlines()}
    assert named == {
        str(tmp_path / "none" / "cluster_token"),
        "APPLIANCE_DEVICE",
        "APPLIANCE_CHECKPOINT",
        "APPLIANCE_MOTION_MODULE",
        "APPLIANCE_THREADS",
        "APPLIANCE_LISTEN",
        "APPLIANCE_SYNTHETIC_FAULTS",
    }


def test_an_empty_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cluster_token").write_text("\n")
    with pytest.raises(SettingsError, match="is empty"):
        read_settings({"APPLIANCE_SECRETS_DIR": str(tmp_path), "APPLIANCE_ENGINE": "synthetic"})


def test_the_health_check_needs_no_secret() -> None:
    assert listen_address({"APPLIANCE_LISTEN": "[::]:81"}) == ("::", 81)


def test_how_models_are_kept_and_run_can_be_chosen(secrets_dir: Path) -> None:
    environ = {"APPLIANCE_SECRETS_DIR": str(secrets_dir), "APPLIANCE_ENGINE": "synthetic", "APPLIANCE_VAE": "mse"}
    environ |= {"APPLIANCE_DTYPE": "bf16", "APPLIANCE_COMPILE": "1", "APPLIANCE_MODEL_CACHE_GIB": "0.5"}
    engine = read_settings(environ | {"APPLIANCE_MODEL_CACHE_COUNT": "3"}).engine
    assert (engine.vae, engine.dtype, engine.compile) == ("mse", "bf16", True)
    assert (engine.model_cache_gib, engine.model_cache_count) == (0.5, 3)
    wrong = {"APPLIANCE_DTYPE": "int8", "APPLIANCE_COMPILE": "yes", "APPLIANCE_VAE": "../x"}
    with pytest.raises(SettingsError) as raised:
        read_settings(environ | wrong)
    assert {line.split(":")[0] for line in str(raised.value).splitlines()} == set(wrong)
