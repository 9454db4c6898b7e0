"""The result's files, straight from the winning attempt's folder, and what there is to see before."""

from __future__ import annotations

import base64
import os
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import FileResponse, Response

from appliance.api.problems import RETRY_SECONDS, Problem, described, documented
from appliance.api.services import Caller, JobId, ServicesHere, find_job, patiently
from appliance.errors import StorageError
from appliance.job import JobState, attempt_folder
from appliance.queue import JobRecord
from appliance.storage import Commit, ResultFile, own_file_size

router = APIRouter(prefix="/api/v1/jobs", tags=["results"])

# Nothing a browser would run: media is played, everything else is downloaded.
OTHER_TYPE = "application/octet-stream"
INLINE_TYPES = frozenset(
    {"video/mp4", "video/webm", "image/gif", "image/webp", "image/png", "image/jpeg", "application/json"}
)


class FileFormat(str, Enum):
    MP4 = "mp4"
    GIF = "gif"
    WEBP = "webp"
    WEBM = "webm"
    PNG = "png"

    @property
    def media_type(self) -> str:
        return f"video/{self.value}" if self in (FileFormat.MP4, FileFormat.WEBM) else f"image/{self.value}"


async def read_result(
    services: ServicesHere,
    caller: Caller,
    job_id: JobId,
    file: Annotated[int, Query(ge=0, le=100_000)] = 0,
    format: FileFormat | None = None,
) -> FileResponse:
    """The `file`-th file of a finished job, counted from 0, or with `format` the `file`-th of that format (frames are
    `png`); range requests work. The files are in the order mp4, gif, webp, webm, png."""
    job = await find_job(services, caller, job_id)
    try:
        path, described, facts = await services.disk.do(partial(_look_up, job, file, format))
    except StorageError as error:
        headers = {"Retry-After": RETRY_SECONDS}
        raise Problem(503, "storage-unavailable", f"storage: {error}", headers=headers) from error
    media_type = described.media_type if described.media_type in INLINE_TYPES else OTHER_TYPE
    return FileResponse(
        path,
        stat_result=facts,
        media_type=media_type,
        filename=described.name,
        content_disposition_type="inline",
        headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"},
    )


async def read_preview(services: ServicesHere, caller: Caller, job_id: JobId) -> Response:
    """The newest picture of a job that is being made, small and rough; there is none before its first steps, nor ten
    minutes after its last."""
    await find_job(services, caller, job_id)
    picture = await patiently(services, lambda: services.queue.preview(job_id))
    if picture is None:
        raise Problem(404, "no-preview", "there is no preview of this job now")
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    return Response(base64.b64decode(picture), media_type="image/jpeg", headers=headers)


def _look_up(
    job: JobRecord, index: int, kind: FileFormat | None, jobs_dir: Path
) -> tuple[Path, ResultFile, os.stat_result]:
    path, described = locate(jobs_dir, job, index, kind)
    return path, described, path.stat()


def locate(jobs_dir: Path, job: JobRecord, index: int, kind: FileFormat | None = None) -> tuple[Path, ResultFile]:
    if job.state is not JobState.DONE or job.result is None:
        raise Problem(409, "not-finished", f"the job is {job.state.value}; there is no result", state=job.state.value)
    try:
        commit = Commit.parse_object(job.result)
    except StorageError as error:
        raise Problem(404, "no-such-file", f"the result's description is broken: {error}") from error
    files = [file for file in commit.files if kind is None or file.media_type == kind.media_type]
    if index >= len(files):
        of_kind = f"{kind.value} files" if kind else "files"
        raise Problem(404, "no-such-file", f"the result has {len(files)} {of_kind}, numbered from 0")
    described = files[index]
    path = jobs_dir / attempt_folder(job.job_id, commit.fence) / described.name
    if not _is_there(jobs_dir, path):
        raise Problem(404, "file-missing", "the file is not on storage (any more, or storage is not mounted)")
    return path, described


def _is_there(jobs_dir: Path, path: Path) -> bool:
    try:
        return own_file_size(jobs_dir, path) is not None
    except OSError:
        return False


_path = "/{job_id}/result"
_bytes = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (*sorted(INLINE_TYPES), OTHER_TYPE)}
_ranges = {
    "Accept-Ranges": {"required": True, "schema": {"type": "string"}},
    "ETag": {"required": True, "schema": {"type": "string"}},
}
_parts = {"Content-Range": {"required": False, "schema": {"type": "string"}}, **_ranges}
_responses = (
    documented(400, 401, 404, 409, 416, 422, 503)
    | described(200, "the file", content=_bytes, headers=_ranges)
    | described(206, "the range that was asked for", content=_bytes, headers=_parts)
)
router.add_api_route(_path, read_result, methods=["GET"], response_class=FileResponse, responses=_responses)
router.add_api_route(_path, read_result, methods=["HEAD"], include_in_schema=False, response_class=FileResponse)
_picture = described(200, "the picture", content={"image/jpeg": {"schema": {"type": "string", "format": "binary"}}})
router.add_api_route(
    "/{job_id}/preview",
    read_preview,
    methods=["GET"],
    response_class=Response,
    responses=documented(400, 401, 404, 422, 503) | _picture,
)
