"""Every kind of file: it plays as it was ordered, is the same bytes again, and says what made it."""

from __future__ import annotations

import errno
import hashlib
import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from webui import durable
from webui.engine.base import Clip, EngineError, Frames, StoppedError, StorageError
from webui.engine.synthetic import draw_frames
from webui.request import FORMATS, VideoRequest
from webui.video import gif, result
from webui.video.film import even_sized
from webui.video.result import MEDIA_TYPES, ResultFile, write_result

MADE_BY = {"prompt": "a cät, \U0001f408\nrunning", "seed": 3, "width": 64, "format": ["gif"], "init_image": "x" * 9000}
EXIF_FOLDER, USER_COMMENT = 0x8769, 0x9286


def clip(width: int = 64, height: int = 64, frames: int = 5) -> Clip:
    return Clip(draw_frames(VideoRequest("a", width=width, height=height, frames=frames), 1), dict(MADE_BY))


def write(folder: Path, *formats: str, made: Clip | None = None, fps: int = 12, loops: int = 0) -> list[ResultFile]:
    request = VideoRequest("a", fps=fps, format=formats or ("mp4",), loop_number=loops)
    return write_result(made or clip(), request, folder)


def read(path: Path) -> tuple[Frames, float, dict[str, str]]:
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        metadata = {name.lower(): value for name, value in container.metadata.items()}
        return frames, float(container.streams.video[0].average_rate or 0), metadata


def times(path: Path) -> list[float]:
    with Image.open(path) as image:
        found = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()  # Pillow reads a WebP's times only with the pixels
            found.append(image.info["duration"] / 1000)
        return found


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_videos_play_as_they_were_ordered(tmp_path: Path, kind: str) -> None:
    original = clip()
    (written,) = write(tmp_path, kind, made=original)
    frames, rate, metadata = read(tmp_path / f"video.{kind}")
    assert frames.shape == (5, 64, 64, 3)
    assert rate == 12
    told = json.loads(metadata["comment"])
    assert told == {"prompt": MADE_BY["prompt"], "seed": 3, "width": 64, "init_image": "(9000 characters left out)"}
    assert np.abs(frames.astype(int) - original.frames).mean() < 12, "the video must show the frames it was given"
    content = (tmp_path / f"video.{kind}").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert written == ResultFile(f"video.{kind}", f"video/{kind}", len(content), digest)


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_videos_say_how_their_colours_are_to_be_read(tmp_path: Path, kind: str) -> None:
    """Else a player guesses, by the size of the picture."""
    write(tmp_path, kind)
    with av.open(str(tmp_path / f"video.{kind}")) as container:
        frame = next(container.decode(video=0))
        told = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
    assert told == (6, 1, 1, 13)


def test_playback_can_start_before_the_download_ends(tmp_path: Path) -> None:
    write(tmp_path)
    content = (tmp_path / "video.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_the_same_frames_are_the_same_bytes(tmp_path: Path) -> None:
    assert len({write(tmp_path)[0].sha256 for _ in range(60)}) == 1
    assert len({tuple(file.sha256 for file in write(tmp_path, *FORMATS)) for _ in range(10)}) == 1


@pytest.mark.parametrize(("width", "height"), [(65, 64), (64, 67), (65, 67)])
def test_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    write(tmp_path, *FORMATS, made=clip(width, height))
    for kind in ("mp4", "webm"):
        assert read(tmp_path / f"video.{kind}")[0].shape == (5, height + height % 2, width + width % 2, 3)
    for name in ("video.gif", "video.webp", "frame-0004.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (width, height)


def test_padding_repeats_the_edge_and_even_frames_stay_as_they_are() -> None:
    even = clip().frames
    assert even_sized(even) is even
    odd = even[:, :63, :63]
    padded = even_sized(odd)
    assert (padded[:, :63, :63] == odd).all()
    assert (padded[:, 63, :63] == odd[:, 62]).all()
    assert (padded[:, :63, 63] == odd[:, :, 62]).all()
    assert (even_sized(odd[0]) == padded[0]).all()


@pytest.mark.parametrize(("fps", "seconds"), [(8, 5 / 8), (12, 5 / 12), (50, 0.1), (60, 0.1)])
def test_a_gif_plays_at_its_speed_as_far_as_browsers_can(tmp_path: Path, fps: int, seconds: float) -> None:
    write(tmp_path, "gif", fps=fps)
    shown = times(tmp_path / "video.gif")
    assert len(shown) == 5
    assert min(shown) >= 0.02, "browsers take shorter times for 0.1 s"
    assert sum(shown) == pytest.approx(seconds, abs=0.011)


def test_a_gif_shows_the_frames_and_says_what_made_it(tmp_path: Path) -> None:
    original = clip()
    write(tmp_path, "gif", made=original, loops=3)
    frames, _, _ = read(tmp_path / "video.gif")
    assert np.abs(frames.astype(int) - original.frames).mean() < 6
    with Image.open(tmp_path / "video.gif") as image:
        assert image.info["loop"] == 3
        assert json.loads(image.info["comment"])["prompt"] == MADE_BY["prompt"]


def test_what_stands_still_in_a_gif_does_not_flicker(tmp_path: Path) -> None:
    """With a palette for each frame, or dithering that carries errors down from the moving half, it would."""
    frames = np.random.default_rng(1).integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    down, across = np.mgrid[0:32, 0:64]
    frames[:, 32:] = np.stack([across * 4, down * 8, across + down], axis=-1)  # far more colours than a palette has
    write(tmp_path, "gif", made=Clip(frames))
    shown, _, _ = read(tmp_path / "video.gif")
    assert (shown[:, 34:] == shown[0, 34:]).all()
    assert (shown[1, :32] != shown[0, :32]).any()


def test_a_palette_of_some_of_the_pixels_shows_a_clip_as_well_as_that_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg takes seconds to choose from the many colours of a usual clip."""
    down, across = np.mgrid[0:160, 0:160]
    ramps = np.stack([down + across // 4, across + down // 4, (down * across) // 160], axis=-1)
    frames = np.stack([np.roll(ramps, 9 * number, axis=1) for number in range(6)]).astype(np.uint8)
    errors = []
    for pixels in (frames[..., 0].size, frames[..., 0].size // 8):
        monkeypatch.setattr(gif, "PALETTE_PIXELS", pixels)
        write(tmp_path, "gif", made=Clip(frames))
        errors.append(np.abs(read(tmp_path / "video.gif")[0].astype(int) - frames).mean())
    assert errors[0] < 8
    assert errors[1] == pytest.approx(errors[0], rel=0.05)


def test_progress_is_told_in_time_when_frames_are_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "TELL_SECONDS", 0.0)
    heard: list[tuple[int, int]] = []
    request = VideoRequest("a", format=("mp4",))
    write_result(clip(), request, tmp_path, lambda done, total: heard.append((done, total)))
    assert heard == [(done, 5) for done in range(1, 6)]


@pytest.mark.parametrize("loops", [0, 1, 65535])
def test_how_often_a_webp_and_a_gif_play(tmp_path: Path, loops: int) -> None:
    write(tmp_path, "gif", "webp", loops=loops)
    for kind in ("gif", "webp"):
        with Image.open(tmp_path / f"video.{kind}") as image:
            assert image.info["loop"] == loops


def test_a_webp_shows_the_frames_and_says_what_made_it(tmp_path: Path) -> None:
    original = clip()
    write(tmp_path, "webp", made=original)
    assert sum(times(tmp_path / "video.webp")) == pytest.approx(5 / 12, abs=0.002)
    with Image.open(tmp_path / "video.webp") as image:
        assert image.n_frames == 5
        image.seek(4)
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - original.frames[4]).mean() < 12
        comment = image.getexif().get_ifd(EXIF_FOLDER)[USER_COMMENT]
    head, text = comment[:8], comment[8:].decode("utf-16-be")
    assert head == b"UNICODE\0"
    assert text.startswith(MADE_BY["prompt"])
    assert "Seed: 3" in text


@pytest.mark.parametrize("frames", [1, 2])
def test_the_shortest_clips_work_in_every_format(tmp_path: Path, frames: int) -> None:
    write(tmp_path, *FORMATS, made=clip(frames=frames))
    for kind in ("mp4", "webm", "gif"):
        assert len(read(tmp_path / f"video.{kind}")[0]) == frames
    with Image.open(tmp_path / "video.webp") as image:
        assert (image.n_frames, image.size) == (frames, (64, 64))
        assert image.getexif().get_ifd(EXIF_FOLDER)


def test_frames_that_are_all_alike_still_are_that_many(tmp_path: Path) -> None:
    write(tmp_path, *FORMATS, made=Clip(np.zeros((4, 64, 64, 3), np.uint8)))
    assert len(times(tmp_path / "video.gif")) == len(read(tmp_path / "video.mp4")[0]) == 4


def test_single_frames_lose_nothing(tmp_path: Path) -> None:
    original = clip()
    files = write(tmp_path, "frames", made=original)
    assert [file.name for file in files] == [f"frame-000{number}.png" for number in range(5)]
    for number, file in enumerate(files):
        with Image.open(tmp_path / file.name) as image:
            assert (np.asarray(image) == original.frames[number]).all()
            assert image.info["parameters"].startswith("a cät")
            assert json.loads(image.info["comment"])["seed"] == 3


def test_a_result_has_its_files_in_one_order_whatever_the_orders_was(tmp_path: Path) -> None:
    files = write(tmp_path, "frames", "webm", "gif", "mp4", "webp", "gif")
    frames = [f"frame-000{number}.png" for number in range(5)]
    assert [file.name for file in files] == ["video.mp4", "video.gif", "video.webp", "video.webm", *frames]
    assert [file.media_type for file in files[:5]] == [MEDIA_TYPES[kind] for kind in FORMATS]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(file.name for file in files)
    for file in files:
        content = (tmp_path / file.name).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("kind", FORMATS)
def test_a_failure_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        write(tmp_path, kind, made=Clip(np.zeros((2, 64, 64, 5), np.uint8)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after", [0, 1, 4, 8])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    synced = []
    real = durable.os.fsync

    def fill(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(durable.os, "fsync", fill)
    with pytest.raises(EngineError, match=r"the result cannot be written: .* No space left on device") as raised:
        write(tmp_path, *FORMATS)
    assert raised.value.reason == "UNKNOWN"
    assert isinstance(raised.value, StorageError), "not the job's fault"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_in_the_way_is_no_fault_of_the_storage(tmp_path: Path) -> None:
    (tmp_path / "video.gif").mkdir()
    with pytest.raises(EngineError) as raised:
        write(tmp_path, "gif")
    assert not isinstance(raised.value, StorageError)


def test_progress_goes_over_all_formats_and_can_stop_the_work_in_any(tmp_path: Path) -> None:
    request = VideoRequest("a", format=FORMATS)
    made = clip(frames=16)
    heard: list[tuple[int, int]] = []
    write_result(made, request, tmp_path, lambda done, total: heard.append((done, total)))
    assert heard == [(done, 96) for done in range(8, 97, 8)], "the GIF looks at all frames twice"
    for stop_at in range(8, 97, 8):
        folder = tmp_path / str(stop_at)
        folder.mkdir()

        def stop(done: int, total: int, limit: int = stop_at) -> None:
            if done >= limit:
                raise StoppedError

        with pytest.raises(StoppedError):
            write_result(made, request, folder, stop)
        assert list(folder.iterdir()) == []


def test_files_do_not_grow_with_what_they_were_made_from(tmp_path: Path) -> None:
    pictures = {f"picture {number}": "x" * 7000 for number in range(50)}
    made = Clip(clip().frames, {"prompt": "p" * 4000, "init_image": "x" * (15 << 20), **pictures})
    for file in write(tmp_path, *FORMATS, made=made):
        assert file.size_bytes < 300_000, file.name
    assert json.loads(read(tmp_path / "video.mp4")[2]["comment"])["prompt"] == "p" * 4000


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").symlink_to("/dev/full")
    write(tmp_path)
    assert not (tmp_path / "video.mp4").is_symlink()
    assert io.BytesIO((tmp_path / "video.mp4").read_bytes()).read(8)[4:] == b"ftyp"
