from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from webui.engine import library as module
from webui.engine.base import EngineError
from webui.engine.library import Library, read_header


def put(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    put(models / "checkpoint/toon.safetensors", "toon")
    put(models / "checkpoint/old.ckpt")
    put(models / "checkpoint/.hidden.safetensors")
    put(models / "checkpoint/notes.txt")
    put(models / "checkpoint/sd15/unet/config.json")
    put(models / "checkpoint/sd15/unet/diffusion_pytorch_model.safetensors")
    put(models / "checkpoint/pickled/unet/config.json")
    put(models / "checkpoint/pickled/unet/diffusion_pytorch_model.bin")
    put(models / "motion_module/mm_sd15_v3.safetensors")
    put(models / "motion_module/folder/config.json", '{"motion_max_seq_length": 24}')
    put(models / "motion_module/folder/model.safetensors")
    put(models / "lora/zoom.pt")
    put(models / "lora/pan/pytorch_lora_weights.safetensors")
    return models


@pytest.fixture
def library(root: Path, tmp_path: Path) -> Library:
    return Library(root, tmp_path / "scratch")


def test_files_and_folders_are_listed_and_pickles_are_not(library: Library) -> None:
    assert library.offers() == {
        "checkpoints": ("sd15", "toon"),
        "motion_modules": ("folder", "mm_sd15_v3"),
        "loras": ("pan",),
        "vaes": (),
        "controlnets": (),
        "refused": ("old.ckpt", "zoom.pt"),
        "motion_frames": {"folder": 24},
    }
    assert library.refused("checkpoint") == ["old.ckpt"]
    assert library.refused("lora") == ["zoom.pt"]


def test_a_new_file_is_there_at_once(library: Library, root: Path) -> None:
    put(root / "vae/mse.safetensors")
    assert library.names("vae") == ["mse"]


def test_names_are_found_with_endings_and_aliases(library: Library, root: Path) -> None:
    assert library.find("checkpoint", "toon.safetensors").path == root / "checkpoint/toon.safetensors"
    assert library.find("checkpoint", "SD15").is_folder
    assert library.find("motion_module", "mm_sd_v15_v3").name == "mm_sd15_v3"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("checkpoint", "old", "old.ckpt is a pickle.*convert it to .safetensors"),
        ("checkpoint", "old.ckpt", "is a pickle"),
        ("checkpoint", "pickled", "diffusion_pytorch_model.bin is a pickle"),
        ("lora", "zoom", "zoom.pt is a pickle"),
        ("checkpoint", "none", "does not exist.*there is sd15, toon"),
        ("vae", "none", "there is nothing"),
        ("checkpoint", "../lora/pan", "does not exist"),
    ],
)
def test_what_cannot_be_had_is_told_with_what_to_do(
    library: Library, kind: module.Kind, name: str, message: str
) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        library.find(kind, name)
    assert caught.value.reason == "MODEL_LOAD_FAIL"


def test_a_name_that_is_no_text_can_be_told(library: Library, root: Path) -> None:
    """It ends in answers, events and records, which are UTF-8: one that cannot be written would be a 500."""
    folder = root / "checkpoint/odd/unet"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    Path(os.fsdecode(os.fsencode(folder) + b"/weights\xff.bin")).write_bytes(b"")
    with pytest.raises(EngineError, match=r"weights\?\.bin is a pickle") as caught:
        library.find("checkpoint", "odd")
    assert str(caught.value) == caught.value.message
    assert caught.value.message.encode()


def test_a_files_checksum_is_the_one_everybody_tells(library: Library) -> None:
    assert library.checksum(library.find("checkpoint", "toon")) == hashlib.sha256(b"toon").hexdigest()


def test_checksums_are_made_once_and_again_for_another_content(
    library: Library, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = module.file_checksum
    monkeypatch.setattr(module, "file_checksum", lambda path: (read.append(path.name), real(path))[1])
    toon = library.find("checkpoint", "toon")
    first = library.checksum(toon)
    assert library.checksum(toon) == first
    assert Library(root, tmp_path / "scratch").checksum(toon) == first, "kept from start to start"
    assert read == ["toon.safetensors"]
    before = toon.path.stat()
    toon.path.write_text("noot")
    os.utime(toon.path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as cp --preserve does
    assert library.checksum(toon) != first


def test_a_scratch_disk_that_refuses_costs_nothing_but_time(root: Path, tmp_path: Path) -> None:
    library = Library(root, put(tmp_path / "file") / "below")
    assert library.checksum(library.find("checkpoint", "toon")) == hashlib.sha256(b"toon").hexdigest()


@pytest.mark.parametrize("change", ["checkpoint/sd15/unet/config.json", "checkpoint/sd15/vae/model.safetensors"])
def test_a_folders_checksum_covers_names_and_contents(library: Library, root: Path, change: str) -> None:
    before = library.checksum(library.find("checkpoint", "sd15"))
    put(root / change, "changed")
    assert library.checksum(library.find("checkpoint", "sd15")) != before


def test_what_lies_beside_a_single_file_belongs_to_it(library: Library, root: Path) -> None:
    before = library.checksum(library.find("checkpoint", "toon"))
    put(root / "checkpoint/toon.json", "{}")
    assert library.checksum(library.find("checkpoint", "toon")) != before


def test_how_many_frames_a_motion_module_knows(library: Library, root: Path) -> None:
    name = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"
    save_file({name: np.zeros((1, 32, 4), np.float32)}, root / "motion_module/v3.safetensors", {"ss_output_name": "v"})
    frames = {name: library.max_frames(model) for name, model in library.models("motion_module").items()}
    assert frames == {"folder": 24, "v3": 32, "mm_sd15_v3": None}
    assert library.metadata(library.find("motion_module", "v3")) == {"ss_output_name": "v"}
    assert library.metadata(library.find("motion_module", "mm_sd15_v3")) == {}


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\x02" + b"\0" * 7 + b"[]", b"\xff" * 20, b"\x05" + b"\0" * 7 + b"{1234"]
)
def test_what_is_no_safetensors_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(EngineError, match="is no safetensors file"):
        read_header(tmp_path / "x.safetensors")


def test_what_is_odd_is_no_model_and_hides_no_other(library: Library, root: Path) -> None:
    """Whatever somebody puts there: the engine starts, and lists the rest."""
    put(root / "motion_module/no-module/config.json", '{"sample_size": 64}')
    put(root / "motion_module/no-module/vae.safetensors")
    save_file({"a.pos_encoder.pe": np.zeros(3, np.float32)}, root / "motion_module/flat.safetensors")
    os.symlink("circle.safetensors", root / "motion_module/circle.safetensors")
    os.symlink("around", root / "motion_module/around")
    put(Path(os.fsdecode(os.fsencode(root / "motion_module") + b"/Sch\xf6n.safetensors")))
    names = library.names("motion_module")
    assert names == ["flat", "folder", "mm_sd15_v3", "no-module"]
    told = [library.max_frames(library.find("motion_module", name)) for name in names]
    assert told == [None, 24, None, None]
    json.dumps(library.offers(), ensure_ascii=False).encode()
    put(Path(os.fsdecode(os.fsencode(root / "motion_module/folder") + b"/\xf6.txt")))
    assert library.checksum(library.find("motion_module", "folder"))
