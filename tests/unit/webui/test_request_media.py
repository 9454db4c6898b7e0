"""Pictures and clips inside a request: what is refused, by which name, before anything is decoded in full."""

from __future__ import annotations

import base64
import io
import os
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.integration.webui_media import clip, image, pixels
from webui import media
from webui.request import VideoRequest, request_problems, video_request

PICTURE = image(pixels())
WIDE = image(np.zeros((1, media.SIDE_LIMIT + 1, 3), np.uint8))


def header_only(width: int, height: int) -> str:
    """A PNG of a few bytes that says it is huge."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def names(**fields: Any) -> list[str]:
    return [name for name, _ in request_problems({"prompt": "a cat", "frames": 4} | fields)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_three_kinds_of_pictures_are_read(kind: str, prefix: str) -> None:
    text = prefix + image(pixels(), kind)
    assert names(init_image=text, last_frame=text) == []
    assert media.image_size(text) == (64, 64)
    assert media.read_image(text, (32, 16)).shape == (16, 32, 3)


@pytest.mark.parametrize(
    "text",
    ["", "data", "not base64!", "ü", PICTURE[:200], WIDE, image(pixels(), "BMP"), image(pixels(), "GIF")],
    ids=["empty", "too short", "letters", "umlaut", "cut", "wide", "bmp", "gif"],
)
@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("init_image", "init_image"),
        ("last_frame", "last_frame"),
        ("controlnets", "controlnets[0].image"),
        ("sparse_control", "sparse_control.images[1].image"),
    ],
)
def test_a_bad_picture_is_refused_by_name(field: str, name: str, text: str) -> None:
    values: dict[str, Any] = {
        "init_image": text,
        "last_frame": text,
        "controlnets": [{"model": "x", "image": text}],
        "sparse_control": {"model": "x", "images": [{"frame": 0, "image": PICTURE}, {"frame": 1, "image": text}]},
    }
    assert names(**{field: values[field]}) == [name]


@pytest.mark.parametrize(("width", "height"), [(4097, 16), (60000, 60000), (9600, 9600), (2**31 - 1, 1)])
def test_a_bomb_is_refused_by_its_header(width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(media.MediaError, match="4096 x 4096 pixels"):
        media.image_size(header_only(width, height))
    assert names(init_image=header_only(width, height)) == ["init_image"]


def test_all_pictures_together_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "PIXELS_LIMIT", 3 * 64 * 64)
    three = {"init_image": PICTURE, "last_frame": PICTURE, "controlnets": [{"model": "x", "images": [PICTURE]}]}
    assert names(**three) == []
    assert names(**three, sparse_control={"model": "x", "images": [{"frame": 0, "image": PICTURE}]}) == [
        "sparse_control.images[0].image"
    ]


def test_a_text_that_is_too_long_is_not_even_decoded() -> None:
    assert names(init_image="A" * (media.TEXT_LIMIT + 1)) == ["init_image"]
    assert names(init_video="A" * (media.TEXT_LIMIT + 1)) == ["init_video"]


def test_transparent_parts_are_white_and_pictures_upright() -> None:
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:, :4] = [255, 0, 0, 255]
    read = media.read_image(image(clear))
    assert read[0, 0].tolist() == [255, 0, 0]
    assert read[0, 7].tolist() == [255, 255, 255]
    file, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(pixels(width=64, height=32)).save(file, "JPEG", exif=turned)
    assert media.read_image(base64.b64encode(file.getvalue()).decode()).shape == (64, 32, 3)


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif"])
def test_three_kinds_of_clips_are_read(kind: str) -> None:
    pictures = [np.full((64, 64, 3), 60 * at, np.uint8) for at in range(4)]
    text = clip(pictures, kind)
    assert names(init_video=text) == []
    for frames, expected in ((4, [0, 1, 2, 3]), (2, [0, 1]), (8, [0, 0, 1, 1, 2, 2, 3, 3])):
        read = media.read_video(text, frames, (32, 16))
        assert read.shape == (frames, 16, 32, 3)
        assert [round(float(frame.mean()) / 60) for frame in read] == expected


@pytest.mark.parametrize(
    ("turn", "red"),
    [((1, 0, 0, 1), "top"), ((0, 1, -1, 0), "right"), ((-1, 0, 0, -1), "bottom"), ((0, -1, 1, 0), "left")],
    ids=["not", "clockwise", "upside down", "anticlockwise"],
)
def test_a_clip_of_a_turned_telephone_is_upright(turn: tuple[int, int, int, int], red: str) -> None:
    lying = np.zeros((64, 96, 3), np.uint8)
    lying[:32, :, 0] = lying[32:, :, 2] = 255  # red above blue
    one = 1 << 16
    plain, turned = (
        struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
        for a, b, c, d in ((1, 0, 0, 1), turn)
    )
    content = base64.b64decode(clip([lying]))
    track = content.index(b"tkhd")
    content = content[:track] + content[track:].replace(plain, turned, 1)
    (seen,) = media.read_video(base64.b64encode(content).decode(), 1, (64, 32))
    assert seen.shape == (32, 64, 3)
    edges = {"top": seen[2, 32], "bottom": seen[-3, 32], "left": seen[16, 2], "right": seen[16, -3]}
    assert max(edges, key=lambda edge: int(edges[edge][0]) - int(edges[edge][2])) == red


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        PLAYLIST,
        b"GIF89a",
        b"\x1aE\xdf\xa3" + bytes(100),
        b"\0\0\0\x18ftypisom" + bytes(100),
        b"\0\0\0\x18ftyp" + PLAYLIST,
        base64.b64decode(PICTURE),
        base64.b64decode(clip([pixels()], "mp4"))[:400],
    ],
    ids=["empty", "playlist", "gif", "webm", "mp4", "mp4 playlist", "picture", "cut"],
)
def test_a_bad_clip_is_refused_by_name(content: bytes) -> None:
    assert names(init_video=base64.b64encode(content).decode()) == ["init_video"]


def test_a_clip_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "SIDE_LIMIT", 32)
    assert names(init_video=clip([pixels()], "gif")) == ["init_video"]


def clip_with_a_bomb(side: int) -> str:
    """An MP4 that says 64 x 64, and holds a PNG of `side` x `side`."""
    blank = av.VideoFrame.from_ndarray(np.zeros((side, side), np.uint8), format="gray")
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width = encoder.height = side
    encoder.pix_fmt, encoder.time_base = "gray", Fraction(1, 8)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("png", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "gray"
        for packet in [*encoder.encode(blank), *encoder.encode(None)]:
            packet.stream, packet.pts, packet.dts = stream, 0, 0
            container.mux(packet)
    return base64.b64encode(file.getvalue()).decode()


def test_a_bomb_in_a_clip_is_refused_before_there_is_room_for_it() -> None:
    look = (
        "import resource, sys; from webui import media\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "import av, numpy; before = peak()\n"
        "try: media.probe_video(sys.stdin.read())\n"
        "except media.MediaError as error: print(peak() - before, error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(media.__file__).parents[1])}
    command = [sys.executable, "-c", look]
    told = subprocess.run(
        command, input=clip_with_a_bomb(12_000), capture_output=True, text=True, check=True, env=environment
    ).stdout
    grown, _, why = told.partition(" ")
    assert int(grown) < 40, f"{grown} MiB"
    assert why.startswith(("is damaged", "is too large"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"init_image": PICTURE, "init_video": clip([pixels()])}, ["init_image"]),
        ({"last_frame": PICTURE, "init_video": clip([pixels()])}, ["last_frame"]),
        ({"controlnets": [{"model": "x"}]}, ["controlnets[0]"]),
        ({"controlnets": [{"model": "x", "image": PICTURE, "images": [PICTURE]}]}, ["controlnets[0]"]),
        ({"controlnets": [{"model": "x", "images": [PICTURE] * 5}]}, ["controlnets[0].images"]),
        ({"controlnets": [{"model": "x", "images": []}]}, ["controlnets[0].images"]),
        ({"controlnets": [{"model": "x", "images": [PICTURE, 3]}]}, ["controlnets[0].images[1]"]),
        ({"controlnets": [{"model": "x", "image": PICTURE, "start": 0.6, "end": 0.5}]}, ["controlnets[0].start"]),
        ({"controlnets": [{"image": PICTURE, "weight": 3}]}, ["controlnets[0].model", "controlnets[0].weight"]),
        ({"controlnets": [{"model": "../x", "image": PICTURE}]}, ["controlnets[0].model"]),
        ({"sparse_control": {"model": "x", "images": [{"frame": 4, "image": PICTURE}]}},
         ["sparse_control.images[0].frame"]),
        ({"sparse_control": {"model": "x", "images": [{"frame": 1, "image": PICTURE}] * 2}},
         ["sparse_control.images[1].frame"]),
        ({"sparse_control": {"model": "x"}}, ["sparse_control.images"]),
        ({"free_init": {"iterations": 6, "filter": "box", "more": 1}},
         ["free_init.filter", "free_init.iterations", "free_init.more"]),
        ({"loras": [{"weight": 5}]}, ["loras[0].name", "loras[0].weight"]),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_by_name(fields: dict[str, Any], expected: list[str]) -> None:
    assert names(**fields) == expected


def test_what_is_told_about_a_request_has_no_pictures() -> None:
    asked = {
        "prompt": "a cat",
        "init_image": PICTURE,
        "controlnets": [{"model": "x", "images": [PICTURE]}],
        "sparse_control": {"model": "y", "images": [{"frame": 1, "image": PICTURE}]},
    }
    request = video_request(asked)
    told = request.described()
    assert PICTURE not in str(told)
    assert told["init_image"].startswith("sha256:")
    assert told["controlnets"][0]["images"] == [told["init_image"]]
    assert told["sparse_control"]["images"] == [{"frame": 1, "image": told["init_image"]}]
    assert video_request(request.as_dict()) == request
    assert VideoRequest("a cat").described().keys() & asked.keys() == {"prompt"}
