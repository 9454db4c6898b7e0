"""The parts of a job request: its bounded texts and numbers, and the objects within it. Pure."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from appliance.pictures import TEXT_LIMIT_CHARS, require_clip, require_image

MAX_FRAMES: Final = 128


class OutputFormat(str, Enum):
    MP4 = "mp4"
    GIF = "gif"
    WEBP = "webp"
    WEBM = "webm"
    FRAMES = "frames"


class NoiseFilter(str, Enum):
    BUTTERWORTH = "butterworth"
    GAUSSIAN = "gaussian"
    IDEAL = "ideal"


def require_number(value: object) -> object:
    if isinstance(value, (bool, str)):
        raise ValueError("is not a number")
    return value


Prompt = Annotated[str, Field(max_length=4000)]
Choice = Annotated[str, Field(max_length=64)]
ModelName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^/\\\x00-\x1f]+$")]
Pixels = Annotated[int, Field(ge=64, le=1024, multiple_of=8)]
FrameNumber = Annotated[int, Field(ge=0, lt=MAX_FRAMES)]
Image = Annotated[str, Field(max_length=TEXT_LIMIT_CHARS), AfterValidator(require_image)]
Clip = Annotated[str, Field(max_length=TEXT_LIMIT_CHARS), AfterValidator(require_clip)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Lora(Part):
    name: ModelName
    weight: float = Field(1.0, ge=-4, le=4)

    @field_validator("weight", mode="before")
    @classmethod
    def _refuse_texts_for_numbers(cls, value: object) -> object:
        return require_number(value)


class FreeInit(Part):
    """The first noise is made anew from the result's low frequencies, `iterations` times in all."""

    iterations: int = Field(3, ge=1, le=5)
    filter: NoiseFilter = NoiseFilter.BUTTERWORTH
    spatial_stop_frequency: float = Field(0.25, ge=0, le=1)
    temporal_stop_frequency: float = Field(0.25, ge=0, le=1)

    @field_validator("iterations", "spatial_stop_frequency", "temporal_stop_frequency", mode="before")
    @classmethod
    def _refuse_texts_for_numbers(cls, value: object) -> object:
        return require_number(value)


class ControlNet(Part):
    """`image` for every frame, or `images`, one a frame."""

    model: ModelName
    image: Image | None = None
    images: list[Image] | None = Field(None, min_length=1, max_length=MAX_FRAMES)
    weight: float = Field(1.0, ge=0, le=2)
    start: float = Field(0.0, ge=0, le=1)
    end: float = Field(1.0, ge=0, le=1)

    @field_validator("weight", "start", "end", mode="before")
    @classmethod
    def _refuse_texts_for_numbers(cls, value: object) -> object:
        return require_number(value)

    @model_validator(mode="after")
    def _check_together(self) -> ControlNet:
        if (self.image is None) == (self.images is None):
            raise ValueError("needs `image` or `images`, and not both")
        if self.start > self.end:
            raise ValueError("`start` is after `end`")
        return self


class KeyImage(Part):
    frame: FrameNumber
    image: Image

    @field_validator("frame", mode="before")
    @classmethod
    def _refuse_texts_for_numbers(cls, value: object) -> object:
        return require_number(value)


class SparseControl(Part):
    model: ModelName
    images: list[KeyImage] = Field(min_length=1, max_length=MAX_FRAMES)
    weight: float = Field(1.0, ge=0, le=2)

    @field_validator("weight", mode="before")
    @classmethod
    def _refuse_texts_for_numbers(cls, value: object) -> object:
        return require_number(value)

    @field_validator("images")
    @classmethod
    def _refuse_doubles(cls, value: list[KeyImage]) -> list[KeyImage]:
        if len({item.frame for item in value}) < len(value):
            raise ValueError("names a frame twice")
        return value


# Prompt travel: a line that begins with a frame's number and a colon.
TRAVEL_LINE: Final = re.compile(r"^[ \t]*(\d{1,9})[ \t]*:[ \t]*\S", re.MULTILINE)


def frames_named(prompt: str) -> list[int]:
    return [int(number) for number in TRAVEL_LINE.findall(prompt)]


WEIGHT_FILES: Final = (".safetensors", ".ckpt")
SAME_MODULES: Final = {"mm_sd_v15_v3": "mm_sd15_v3"}  # the article's name for the third module


def model_stem(name: str) -> str:
    """The one name under which queue and workers know a model: without a file's ending, and one of two spellings."""
    for ending in WEIGHT_FILES:
        if name.lower().endswith(ending) and len(name) > len(ending):
            name = name[: -len(ending)]
            break
    return SAME_MODULES.get(name, name)
