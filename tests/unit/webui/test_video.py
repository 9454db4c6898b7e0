from __future__ import annotations

import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest

from webui.engine.base import Clip, Frames
from webui.engine.synthetic import draw_frames
from webui.request import VideoRequest
from webui.video import even_sized, write_mp4


def clip(width: int = 64, height: int = 64, frames: int = 5) -> Clip:
    return Clip(draw_frames(VideoRequest("a cät", width=width, height=height, frames=frames), 1), {"prompt": "a cät"})


def read(path: Path) -> tuple[Frames, float, dict[str, str]]:
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        return frames, float(container.streams.video[0].average_rate or 0), dict(container.metadata)


def test_the_file_plays_as_it_was_ordered(tmp_path: Path) -> None:
    original = clip()
    result = write_mp4(original, 12, tmp_path / "video.mp4")
    frames, rate, metadata = read(tmp_path / "video.mp4")
    assert frames.shape == (5, 64, 64, 3)
    assert rate == 12
    assert json.loads(metadata["comment"]) == {"prompt": "a cät"}
    assert np.abs(frames.astype(int) - original.frames).mean() < 12, "the video must show the frames it was given"
    content = (tmp_path / "video.mp4").read_bytes()
    assert (result.size_bytes, result.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert result.name == "video.mp4"
    assert result.media_type == "video/mp4"


def test_playback_can_start_before_the_download_ends(tmp_path: Path) -> None:
    write_mp4(clip(), 8, tmp_path / "video.mp4")
    content = (tmp_path / "video.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_the_same_frames_are_the_same_bytes(tmp_path: Path) -> None:
    assert len({write_mp4(clip(), 8, tmp_path / "video.mp4").sha256 for _ in range(60)}) == 1


@pytest.mark.parametrize(("width", "height"), [(65, 64), (64, 67), (65, 67)])
def test_odd_sizes_are_padded(tmp_path: Path, width: int, height: int) -> None:
    write_mp4(clip(width, height), 8, tmp_path / "video.mp4")
    assert read(tmp_path / "video.mp4")[0].shape == (5, height + height % 2, width + width % 2, 3)


def test_padding_repeats_the_edge_and_even_frames_stay_as_they_are() -> None:
    even = clip().frames
    assert even_sized(even) is even
    odd = even[:, :63, :63]
    padded = even_sized(odd)
    assert (padded[:, :63, :63] == odd).all()
    assert (padded[:, 63, :63] == odd[:, 62]).all()
    assert (padded[:, :63, 63] == odd[:, :, 62]).all()


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unexpected"):
        write_mp4(Clip(np.zeros((2, 64, 64, 5), np.uint8)), 8, tmp_path / "video.mp4")
    assert list(tmp_path.iterdir()) == []
