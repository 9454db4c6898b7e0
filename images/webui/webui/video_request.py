"""What is to be made, as values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from webui.request_checks import FRAMES

PICTURES = ("init_image", "last_frame", "init_video", "image", "images")


@dataclass(frozen=True)
class Lora:
    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class FreeInit:
    """The first noise is made anew from the result's low frequencies; `iterations` runs in all."""

    iterations: int = 3
    filter: str = "butterworth"
    spatial_stop_frequency: float = 0.25
    temporal_stop_frequency: float = 0.25


@dataclass(frozen=True)
class ControlNet:
    """`image` for every frame, or `images`, one a frame, of which the last one stays; base64 as they came, and prepared
    as the network wants them (edges, depths …): nothing here does that.

    `start` and `end` are parts of the steps that are run.
    """

    model: str
    image: str | None = None
    images: Sequence[str] | None = None
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class KeyImage:
    frame: int
    image: str


@dataclass(frozen=True)
class SparseControl:
    model: str
    images: Sequence[KeyImage]
    weight: float = 1.0


@dataclass(frozen=True)
class VideoRequest:
    """What is to be made. Pictures and clips are base64, as they came. `video_request` makes one of JSON."""

    prompt: str
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    frames: int = FRAMES
    fps: int = 8
    steps: int = 20
    cfg_scale: float = 7.5
    seed: int = -1
    sampler: str | None = None
    model: str | None = None
    motion_module: str | None = None
    context_batch_size: int | None = None
    context_overlap: int | None = None
    format: Sequence[str] = ("mp4",)
    loop_number: int = 0  # of GIF and WebP; 0 is endless
    scheduler: str | None = None
    vae: str | None = None
    clip_skip: int = 1
    loras: Sequence[Lora] = ()
    init_image: str | None = None
    last_frame: str | None = None
    init_video: str | None = None
    denoising_strength: float = 0.75
    latent_power: float = 1.0
    latent_scale: float = 32.0
    latent_power_last: float = 1.0
    latent_scale_last: float = 32.0
    free_init: FreeInit | None = None
    controlnets: Sequence[ControlNet] = ()
    sparse_control: SparseControl | None = None
    context_stride: int = 1
    closed_loop: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def described(self) -> dict[str, Any]:
        """For whoever wonders later how a video was made: no pictures, only their checksums; and of what not every
        request has, only what this one asks for."""
        told = self.as_dict()
        return {
            name: _without_pictures(name, value)
            for name, value in told.items()
            if name in ALWAYS_TOLD or getattr(self, name) != VideoRequest.__dataclass_fields__[name].default
        }

    @property
    def starts_from_media(self) -> bool:
        return bool(self.init_image or self.last_frame or self.init_video)

    @property
    def steps_a_run(self) -> int:
        """How many of `steps` are run, once: from a picture on, only the last ones."""
        if not self.starts_from_media:
            return self.steps
        return max(1, round(self.steps * self.denoising_strength)) if self.denoising_strength > 0 else 0

    @property
    def total_steps(self) -> int:
        """How many steps are told as done in the end; 0 where a picture is only to be passed on."""
        return self.steps_a_run * (self.free_init.iterations if self.free_init else 1)


ALWAYS_TOLD = tuple(VideoRequest.__dataclass_fields__)[:14]


def _without_pictures(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_pictures(key, part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_pictures(name, part) for part in value]
    if name in PICTURES and isinstance(value, str):
        return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"
    return value


def video_request(request: Mapping[str, Any]) -> VideoRequest:
    """Of JSON in which `request_problems` finds nothing, or of `VideoRequest.as_dict`; other fields are left out."""
    fields = {name: request[name] for name in VideoRequest.__dataclass_fields__ if name in request}
    fields |= {name: NULLS[name] for name in NULLS.keys() & fields.keys() if fields[name] is None}
    if fields.get("format") is not None:
        fields["format"] = tuple(fields["format"])
    if "loras" in fields:
        fields["loras"] = tuple(Lora(**item) for item in fields["loras"])
    if fields.get("free_init") is not None:
        fields["free_init"] = FreeInit(**fields["free_init"])
    if "controlnets" in fields:
        fields["controlnets"] = tuple(_controlnet(item) for item in fields["controlnets"])
    if (sparse := fields.get("sparse_control")) is not None:
        images = tuple(KeyImage(**item) for item in sparse["images"])
        fields["sparse_control"] = SparseControl(**(sparse | {"images": images}))
    return VideoRequest(**fields)


NULLS: dict[str, Any] = {"loras": (), "context_stride": 1, "closed_loop": False}


def _controlnet(item: Mapping[str, Any]) -> ControlNet:
    images = item.get("images")
    return ControlNet(**{**item, "images": None if images is None else tuple(images)})
