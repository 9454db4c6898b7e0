from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import SettingsError
from appliance.exporter.settings import read_exporter_settings


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    for name in ("redis_password", "cluster_token"):
        (tmp_path / name).write_text("s3cret\n")
    return {"APPLIANCE_NODE_NAME": "gpu-01", "APPLIANCE_SECRETS_DIR": str(tmp_path)}


def test_a_host_without_anything(environment: dict[str, str]) -> None:
    settings = read_exporter_settings(environment)
    assert (settings.gpus, settings.worker_names, settings.gateway_socket, settings.aws_credentials) == (
        (),
        (),
        None,
        None,
    )
    assert (str(settings.listen), settings.article_names) == ("0.0.0.0:9400", True)
    assert "s3cret" not in repr(settings)


def test_a_host_with_everything(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "aws_credentials").write_text("[default]\naws_access_key_id = s3cret\n")
    settings = read_exporter_settings(
        environment
        | {
            "APPLIANCE_GPUS": "GPU-5f0c1a52-8e0b, GPU-5f0c1a52-8e0c",
            "APPLIANCE_WORKERS": "2",
            "APPLIANCE_GATEWAY_SOCKET": "/run/gateway/state.sock",
            "APPLIANCE_ARTICLE_NAMES": "false",
            "APPLIANCE_PRICES": '{"host":{"as_of":"2026-01-15","market":"spot","usd_per_hour":1.5}}',
        }
    )
    assert settings.gpus == ("GPU-5f0c1a52-8e0b", "GPU-5f0c1a52-8e0c")
    assert settings.worker_names == ("gpu-01/0", "gpu-01/1")
    assert settings.gateway_socket == Path("/run/gateway/state.sock")
    assert settings.prices.host is not None
    assert settings.prices.host.usd_per_hour == 1.5
    assert not settings.article_names
    assert settings.aws_credentials is not None
    assert "s3cret" not in repr(settings)


def test_all_problems_come_at_once(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "cluster_token").unlink()
    environment |= {
        "APPLIANCE_GPUS": "0,GPU-5f0c1a52-8e0b,gpu-5f0c1a52-8e0b,GPU-5f0c1a52-8e0b",
        "APPLIANCE_WORKERS": "-1",
        "APPLIANCE_ARTICLE_NAMES": "yes",
        "APPLIANCE_PRICES": "[1]",
    }
    with pytest.raises(SettingsError) as caught:
        read_exporter_settings(environment)
    said = str(caught.value)
    for words in (
        "cluster_token: cannot be read",
        "APPLIANCE_GPUS: '0' is no UUID",
        "APPLIANCE_GPUS: names a GPU twice",
        "APPLIANCE_WORKERS: -1 is outside",
        "APPLIANCE_ARTICLE_NAMES: 'yes' is neither true nor false",
        "APPLIANCE_PRICES: is no price table",
    ):
        assert words in said, said


@pytest.mark.parametrize("text", ["{", '{"gpus": [1]}', '{"host": {"usd_per_hour": 1}}', '{"host": 5}', "[" * 100_000])
def test_a_price_table_that_is_none(environment: dict[str, str], text: str) -> None:
    with pytest.raises(SettingsError, match="is no price table"):
        read_exporter_settings(environment | {"APPLIANCE_PRICES": text})
