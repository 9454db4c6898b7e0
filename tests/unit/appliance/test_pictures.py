"""Pictures as Pillow writes them, and what only pretends to be one."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from appliance.pictures import decode_base64, image_size, require_clip, require_image


def written(kind: str, size: tuple[int, int] = (300, 20), **more: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind, **more)
    return file.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


EXIF = Image.Exif()
EXIF[0x010E] = "x" * 60_000


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": EXIF}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": EXIF}),
    ],
)
def test_sizes_by_the_header_alone(kind: str, more: dict[str, object]) -> None:
    content = written(kind, **more)
    assert image_size(content) == (300, 20)
    assert require_image(text(content)) == text(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_any_beginning_of_a_picture_is_read_without_an_error(kind: str) -> None:
    content = written(kind)
    for length in range(0, len(content), 7):
        assert image_size(content[:length]) in (None, (300, 20))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_pictures_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="is not a PNG, JPEG or WebP"):
        require_image(text(written(kind)))


@pytest.mark.parametrize("size", [(4097, 1), (1, 4097)])
def test_large_pictures_are_refused_before_anyone_decodes_them(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at most 4096 x 4096"):
        require_image(text(written("PNG", size)))
    require_image(text(written("PNG", (4096, 1))))


def test_base64_with_and_without_a_prefix() -> None:
    assert decode_base64("data:image/png;base64,QUJD") == decode_base64("QU\nJD") == b"ABC"
    for wrong in ("Q", "data:image/png;base64,!!", "ü"):
        with pytest.raises(ValueError, match="is not base64"):
            decode_base64(wrong)


@pytest.mark.parametrize("head", [b"\0\0\0\x18ftypisom", b"\x1aE\xdf\xa3", b"GIF89a"])
def test_clips(head: bytes) -> None:
    assert require_clip(text(head)) == text(head)
    with pytest.raises(ValueError, match="is not an MP4, WebM or GIF"):
        require_clip(text(b"x" + head))
