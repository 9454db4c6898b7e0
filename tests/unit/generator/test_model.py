from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from generator import model


def minimal() -> dict[str, Any]:
    return {
        "name": "x",
        "hosts": {"a": {"address": "10.0.0.1", "roles": ["worker"]}},
        "models": {"checkpoint": "c", "motion_module": "m", "available": [{"name": "c", "kind": "checkpoint"}]},
    }


def test_defaults_are_enough() -> None:
    cluster = model.Cluster.model_validate(minimal())
    assert cluster.gateway.tls.mode is model.TlsMode.SELF_SIGNED
    assert cluster.storage.driver is model.StorageDriver.LOCAL


def test_a_cluster_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        setattr(model.Cluster.model_validate(minimal()), "name", "y")  # noqa: B010  (mypy knows it, too)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (model.DNS_LABEL, ["a", "gpu-01", "a" * 40], ["", "-a", "a-", "A", "a.b", "a" * 41, "a\n"]),
        (model.FILE_NAME, ["tiny", "mm_sd15_v3.safetensors"], ["", ".a", "..", "a/b", "a b", "a\n"]),
        (
            model.GPU_UUID,
            ["GPU-5f0c1a52-8e0b-4d0e-9c1e-6a2f3b4c5d01"],
            ["GPU-12", "5f0c1a52-8e0b-4d0e-9c1e-6a2f3b4c5d01"],
        ),
        (model.ABSOLUTE_PATH, ["/a", "/mnt/ceph-fs/x.y"], ["a", "", "/", "/a b", "/a$b", "/a:b"]),
        (
            model.REGISTRY,
            ["", "localhost:5000", "registry.example.net/team/sub", "10.0.0.1:5000/x"],
            ["https://r", "r/", "r//x", "R", "r:port", "-r", "r/x:1"],
        ),
        (model.TAG, ["0.1.0", "_a", "v1-rc.2"], ["", "-a", "a/b", "a:b", "a" * 129]),
        (model.SERVER_NAME, ["localhost", "video.example.net", "192.168.1.100"], ["", "a b", "a;b", "a/b", "*.x"]),
        (model.MOUNT_OPTIONS, ["nfsvers=4.2,hard,timeo=50,retrans=3"], ["", "a b", "a;b"]),
        (model.SHA256, ["0" * 64], ["0" * 63, "G" * 64]),
        (model.ALLOCATOR, ["", "expandable_segments:True,max_split_size_mb:128"], ["a b", "a$b", "a\n"]),
        (model.SOURCE, ["demo", "https://example.net/a?b=c"], ["", "a b", "ä", "a\n"]),
    ],
)
def test_patterns(pattern: str, good: list[str], bad: list[str]) -> None:
    wanted = re.compile(pattern[:-1] + r"\Z")  # Pydantic's engine takes $ for the very end, unlike Python's
    assert [text for text in good if not wanted.match(text)] == []
    assert [text for text in bad if wanted.match(text)] == []


def test_a_final_newline_is_not_part_of_a_name() -> None:
    with pytest.raises(ValidationError):
        model.Cluster.model_validate(minimal() | {"name": "x\n"})
