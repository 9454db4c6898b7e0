"""What an A1111 answers: videos as base64, or what went wrong in its words. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.job import Reason

MEDIA_TYPES = {
    "mp4": "video/mp4",
    "gif": "image/gif",
    "webp": "image/webp",
    "webm": "video/webm",
    "frames": "image/png",
}
MESSAGE_CHARS = 500
_OUT_OF_MEMORY = re.compile(r"out of memory|outofmemoryerror", re.IGNORECASE)
_LOST = re.compile(r"gpu is lost|fallen off the bus|unable to determine the device handle", re.IGNORECASE)
_CUDA = re.compile(r"cuda error|cublas|cudnn|device-side assert|hip error", re.IGNORECASE)


class WrongAnswerError(Exception):
    """A 200 that does not hold the videos that were asked for."""


@dataclass(frozen=True)
class Media:
    """One file of the answer, with the name that it gets in the attempt's folder."""

    name: str
    media_type: str
    content: bytes


def read_answer(body: bytes, formats: Sequence[str], frames: int) -> tuple[list[Media], dict[str, Any]]:
    """The files in the order of `formats`, and the parameters that A1111 says it has used. Raises WrongAnswerError."""
    try:
        answer = json.loads(body)
        images = [base64.b64decode(_bare(text), validate=True) for text in answer["images"]]
        info = json.loads(answer["info"]) if answer.get("info") else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise WrongAnswerError(f"its answer cannot be read: {type(error).__name__}") from None
    kinds = [_kind(content) for content in images]
    files = [_video(images, kinds, kind) for kind in formats if kind != "frames"]
    if frames > 1 and any(not _moves(file.content, file.media_type) for file in files):
        raise WrongAnswerError("a still image came back instead of a video")
    if "frames" in formats:
        pictures = [content for content, kind in zip(images, kinds, strict=True) if kind == "frames"]
        if len(pictures) != frames:
            raise WrongAnswerError(f"{len(pictures)} frames came back instead of {frames}")
        files += [Media(f"frame-{n:04}.png", "image/png", content) for n, content in enumerate(pictures)]
    return files, info if isinstance(info, dict) else {}


def _bare(text: str) -> str:
    return text.partition(",")[2] if text.startswith("data:") else text


def _video(images: list[bytes], kinds: list[str], wanted: str) -> Media:
    if wanted not in kinds:
        got = ", ".join(sorted(set(kinds))) or "nothing"
        raise WrongAnswerError(f"no {wanted} came back, but {got}: is the AnimateDiff extension at work?")
    return Media(f"video.{wanted}", MEDIA_TYPES[wanted], images[kinds.index(wanted)])


def _kind(content: bytes) -> str:
    """By what the bytes are, not by what was asked for."""
    if content[4:8] == b"ftyp":
        return "mp4"
    if content[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if content[:4] == b"\x1a\x45\xdf\xa3":
        return "webm"
    return "frames" if content[:8] == b"\x89PNG\r\n\x1a\n" else "something else"


def _moves(content: bytes, media_type: str) -> bool:
    """Whether a GIF or WebP has more than one picture; an MP4 or WebM is a video by being one."""
    if media_type not in ("image/gif", "image/webp"):
        return True
    pictures = _gif_pictures(content) if media_type == "image/gif" else _webp_pictures(content)
    return next(pictures, None) is not None and next(pictures, None) is not None


def _gif_pictures(content: bytes) -> Iterator[int]:
    """Where each image block begins (GIF89a specification, sections 17 to 27); ends where the file is broken."""
    try:
        at = 13 + (3 << (content[10] & 7) + 1 if content[10] & 0x80 else 0)
        while content[at] in (0x21, 0x2C):
            if content[at] == 0x2C:
                yield at
                table = content[at + 9]
                at += 11 + (3 << (table & 7) + 1 if table & 0x80 else 0)
            else:
                at += 2
            while content[at]:
                at += 1 + content[at]
            at += 1
    except IndexError:
        return


def _webp_pictures(content: bytes) -> Iterator[int]:
    """Where each frame of an animation begins (RIFF: four letters, a length, and content to an even length)."""
    at = 12
    while at + 8 <= len(content):
        if content[at : at + 4] == b"ANMF":
            yield at
        at += 8 + (int.from_bytes(content[at + 4 : at + 8], "little") + 1 & ~1)


def read_error(status: int, body: bytes) -> tuple[Reason, str]:
    """Reason and message of an answer that is not 200: `{"error", "detail", "body", "errors"}`, or `{"detail"}`."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    said = said if isinstance(said, dict) else {"errors": body[:MESSAGE_CHARS].decode(errors="replace")}
    error, detail, errors = (said.get(name) or "" for name in ("error", "detail", "errors"))
    message = (
        ": ".join(str(part) for part in (error, _plain(detail), errors) if part)[:MESSAGE_CHARS] or f"HTTP {status}"
    )
    return _reason(status, str(error), message), message


def _plain(detail: Any) -> str:
    """Pydantic's list of problems in one line."""
    if not isinstance(detail, list):
        return str(detail)
    return "; ".join(
        f"{one.get('loc', '')} {one.get('msg', '')}" if isinstance(one, dict) else str(one) for one in detail
    )


def _reason(status: int, error: str, message: str) -> Reason:
    if status in (400, 404, 413, 422):
        return Reason.INVALID_INPUT
    if error == "MemoryError":
        return Reason.HOST_OOM
    for pattern, reason in ((_OUT_OF_MEMORY, Reason.OOM), (_LOST, Reason.GPU_LOST), (_CUDA, Reason.CUDA_ERROR)):
        if pattern.search(message):
            return reason
    return Reason.UNKNOWN
