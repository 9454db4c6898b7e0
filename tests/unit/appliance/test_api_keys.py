from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from appliance.api.auth import KeyRing, parse_keys, presented_key

DIGEST = hashlib.sha256(b"k").hexdigest()


def test_bad_lines_are_skipped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    text = f"# all keys\n\nada:user:{DIGEST}  # hers\nbob:admin:{DIGEST}\neve:user:123\nroot:operator:{DIGEST}\n"
    entries = parse_keys(text, Path("api_keys"))
    assert [(identity.name, identity.is_operator) for identity, _ in entries] == [("ada", False), ("root", True)]
    assert [record.args[1] for record in caplog.records if isinstance(record.args, tuple)] == [4, 5]


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"x-api-key": "k"}, "k"),
        ({"authorization": "Bearer k"}, "k"),
        ({"authorization": "bearer  k"}, "k"),
        ({"authorization": "Basic dXNlcjpr"}, "k"),
        ({"authorization": "Basic dXNlcjprOmw="}, "k:l"),
        ({"authorization": "Basic ???"}, None),
        ({"authorization": "Digest k"}, None),
        ({}, None),
    ],
)
def test_ways_to_present_a_key(headers: dict[str, str], key: str | None) -> None:
    assert presented_key(Headers(headers)) == key


def test_an_unreadable_file_keeps_the_known_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.api.auth.RECHECK_SECONDS", 0.0)
    path = tmp_path / "api_keys"
    path.write_text(f"ada:user:{DIGEST}\n")
    ring = KeyRing(path)
    headers = Headers({"x-api-key": "k"})
    path.unlink()
    assert ring.identify(headers) is not None
    path.write_text("")
    os.utime(path, ns=(1, 1))
    assert ring.identify(headers) is None


def test_a_file_that_was_read_half_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written in place, and two writes of one moment may leave the same time."""
    monkeypatch.setattr("appliance.api.auth.RECHECK_SECONDS", 0.0)
    path = tmp_path / "api_keys"
    path.write_text(f"ada:user:{DIGEST[:10]}")
    half_written = path.stat().st_mtime_ns
    ring = KeyRing(path)
    path.write_text(f"ada:user:{DIGEST}\n")
    os.utime(path, ns=(half_written, half_written))
    assert ring.identify(Headers({"x-api-key": "k"})) is not None
