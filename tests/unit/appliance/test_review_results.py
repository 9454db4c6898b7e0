"""A webui writes to the volume that the api reads from: it must not choose what else the api reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.api.problems import Problem
from appliance.api.results import locate
from appliance.job import attempt_folder, new_job_id
from appliance.queue import JobRecord
from appliance.storage import ResultFile, new_commit


def done(job_id: str) -> JobRecord:
    result = new_commit(job_id, 5, "a/0", (ResultFile("video.mp4", "video/mp4", 6, "0"),)).to_json()
    facts = {"id": job_id, "user": "ada", "state": "done", "prio": "normal", "created": "1", "result": result}
    assert json.loads(result)["fence"] == 5
    return JobRecord.parse(facts, None)


@pytest.mark.parametrize("place", ["nowhere", "file", "folder"])
def test_only_a_plain_file_is_served(tmp_path: Path, place: str) -> None:
    jobs_dir, elsewhere, job_id = tmp_path / "jobs", tmp_path / "secrets", new_job_id()
    elsewhere.mkdir()
    (elsewhere / "video.mp4").write_bytes(b"secret")
    folder = jobs_dir / attempt_folder(job_id, 5)
    folder.parent.mkdir(parents=True)
    if place == "folder":
        folder.symlink_to(elsewhere)
    else:
        folder.mkdir()
    if place == "file":
        (folder / "video.mp4").symlink_to(elsewhere / "video.mp4")
    elif place == "nowhere":
        (folder / "video.mp4").write_bytes(b"frames")
        assert locate(jobs_dir, done(job_id), 0)[0].read_bytes() == b"frames"
        return
    with pytest.raises(Problem):
        locate(jobs_dir, done(job_id), 0)
