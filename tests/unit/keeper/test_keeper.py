"""What is asked of certbot, what is kept of it, and what nginx is shown."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from generator.certificates import make_authority, make_server
from keeper import certbot, health, pair, tries
from keeper.settings import Settings, read_settings

ENVIRONMENT = {"APPLIANCE_ACME_DIRECTORY": "https://acme.example.net/dir", "APPLIANCE_ACME_NAME": "video.example.net"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    folders = {name: tmp_path / name for name in ("folder", "challenges", "tls", "scratch")}
    for folder in folders.values():
        folder.mkdir()
    return replace(read_settings(ENVIRONMENT), **folders)  # type: ignore[arg-type]


def made(name: str = "video.example.net") -> pair.Pair:
    key, chain = make_server(*make_authority(), (name,))
    return pair.Pair(chain, key)


def test_what_is_missing_in_the_environment_is_told() -> None:
    with pytest.raises(SystemExit, match=r"APPLIANCE_ACME_NAME: not set; compose\.yaml of"):
        read_settings({**ENVIRONMENT, "APPLIANCE_ACME_NAME": ""})


def test_the_exact_command(settings: Settings) -> None:
    given = certbot.arguments(settings)
    assert given[:6] == [
        "certbot", "certonly", "--non-interactive", "--agree-tos", "--register-unsafely-without-email", "--server",
    ]  # fmt: skip
    assert {"--keep-until-expiring", "--webroot", "video.example.net", "https://acme.example.net/dir"} <= set(given)
    assert "--force-renewal" in certbot.arguments(settings, force=True)
    assert "--email" in certbot.arguments(replace(settings, email="a@example.net"))


def test_another_directory_has_other_certificates(settings: Settings) -> None:
    """One of a trial directory would pass for fresh otherwise, and the real one never be asked."""
    other = replace(settings, directory="https://staging.example.net/dir")
    assert other.lineage != settings.lineage


def test_certbot_is_ended_with_the_container(settings: Settings) -> None:
    result = certbot.run(settings, ["sleep", "60"], lambda: False)
    assert not result.done


def test_what_certbot_said_is_kept(settings: Settings) -> None:
    said = certbot.run(settings, ["sh", "-c", "echo the DNS record is missing; exit 1"], lambda: True)
    assert (said.done, said.output) == (False, "the DNS record is missing")
    assert certbot.run(settings, ["true"], lambda: True).done


def test_a_pair_is_shown_whole(settings: Settings) -> None:
    one = made()
    assert pair.shown(settings.tls) is None
    pair.show(one, settings.tls)
    assert pair.shown(settings.tls) == one
    assert {path.name for path in settings.tls.iterdir()} == {"tls.crt", "tls.key"}
    assert {path.stat().st_mode & 0o777 for path in settings.tls.iterdir()} == {0o600}


def test_what_was_left_half_written_is_written_over(settings: Settings) -> None:
    (settings.tls / ".tls.key.tmp").write_bytes(b"half")
    one = made()
    pair.show(one, settings.tls)
    assert pair.shown(settings.tls) == one


def test_a_crooked_pair_is_not_used() -> None:
    one, other = made(), made()
    assert one.fault == ""
    assert pair.Pair(one.chain, other.key).fault == "the key is not that of the certificate"
    for broken in (pair.Pair(b"", one.key), pair.Pair(one.chain, b""), pair.Pair(one.chain[:200], one.key)):
        assert broken.fault.startswith("not a certificate with its key")


def test_health(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the loop alone: a directory that issues nothing must not keep `up` from the other hosts."""

    def fault() -> str:
        code, told = health.check(settings), capsys.readouterr().err.strip()
        assert code == (1 if told else 0)
        return told

    assert fault() == "not started yet"
    settings.pulse.touch()
    assert fault() == "", "no certificate yet"
    pair.show(pair.Pair(made().chain, made().key), settings.tls)
    assert fault() == ""
    os.utime(settings.pulse, (1, 1))
    assert fault().startswith("the loop has not turned for")


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[null, 5]", b"\xff"])
def test_a_damaged_list_of_tries_is_no_reason_to_stop(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tries.json"
    path.write_bytes(content)
    assert tries.read(path) == ([5.0] if b"5" in content else [])
    tries.write(path, [1.5])
    assert tries.read(path) == [1.5]
