"""`generator backup` and `restore` on the Redis of a rendered cluster of one host."""

from __future__ import annotations

import dataclasses
import json
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from appliance.job import JobState
from appliance.queue import FailKind, JobRecord, Queue
from appliance.redis_link import RedisLink
from appliance.settings import Address, RedisSettings, Secret
from generator.docker import Engine
from generator.errors import ToolError, UserError
from generator.ops import backup as ops
from generator.ops.cluster import Place, places
from generator.progress import Mode, Progress
from generator.secrets import Store
from tests.integration.redis_server import FAST, add, take
from tests.integration.stack import prepare

pytestmark = pytest.mark.docker
QUIET = Progress(Mode.QUIET)


@dataclass(frozen=True)
class Machine:
    project: str
    places: list[Place]
    folder: Path
    store: Store
    engine: Engine

    def backup(self, name: str = "queue.tar") -> tuple[Path, ops.Manifest]:
        output = self.folder.parent / name
        return output, ops.backup(self.places, self.store.read()["redis_replica_password"], output, QUIET)

    def queue(self) -> Queue:
        container = next(one for one in self.engine.containers(self.project) if one.service == "redis")
        (address,) = container.networks.values()
        password = Secret(self.store.read()["redis_password"].decode())
        settings = RedisSettings(Address(address, 6379), (), "queue", "appliance", password, 0)
        return Queue(RedisLink(settings), dataclasses.replace(FAST, lease_seconds=30))

    async def jobs(self) -> dict[str, JobRecord]:
        queue = self.queue()
        try:
            ids = await queue.list_ids(None, None, 100)
            return {job.job_id: job for job in await queue.get_many(ids) if job}
        finally:
            await queue.close()

    def counts(self) -> str:
        ask = "redis-cli --no-auth-warning --user appliance --scan --pattern '{q}:counts:*'"
        script = f"REDISCLI_AUTH=$(cat /run/secrets/redis_password) {ask}"
        return self.engine.compose(self.folder, "exec", "--no-TTY", "redis", "sh", "-c", script).strip()

    def shell(self, script: str) -> str:
        words = ["run", "--rm", "--no-deps", "--no-TTY", "--entrypoint", "bash", "redis", "-c", script]
        return self.engine.compose(self.folder, *words)


@pytest.fixture
def machine(images: str, engine: Engine, tmp_path: Path) -> Iterator[Machine]:
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)  # the containers read the files as uid 10001
    project = f"animatediff-test-backup-{uuid.uuid4().hex[:6]}"
    the_plan, folder, store = prepare(
        tmp_path / "out", tag=images, variant="synthetic", project=project, step_seconds=0.05
    )
    made = Machine(project, places(the_plan, tmp_path / "out"), folder, store, engine)
    try:
        engine.compose(folder, "up", "--detach", "--wait", "redis")
        yield made
    finally:
        engine.compose(folder, "down", "--volumes", "--remove-orphans")


@pytest_asyncio.fixture
async def filled(machine: Machine) -> AsyncIterator[Machine]:
    """Two jobs wait, one runs, one is done and one dead."""
    queue = machine.queue()
    for _ in range(5):
        await add(queue)
    await queue.commit(await take(queue), '{"files": ["video.mp4"]}')
    await queue.fail(await take(queue), FailKind.PERMANENT, "INVALID_INPUT", "no such thing")
    await take(queue)
    await queue.tick()  # which counts what has ended
    await queue.close()
    yield machine


async def test_what_was_saved_is_what_comes_back(filled: Machine) -> None:
    before = await filled.jobs()
    assert sorted(job.state.value for job in before.values()) == ["dead", "done", "queued", "queued", "running"]
    assert "counts:" in filled.counts()
    output, manifest = filled.backup()
    assert output.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in output.parent.iterdir() if "queue.tar" in path.name] == ["queue.tar"]
    counts = {"jobs": 5, "waiting": 2, "running": 1, "delayed": 0, "ended": 2, "dead": 1}
    assert manifest.counts == counts

    queue = filled.queue()
    await add(queue)
    await queue.cancel(next(job.job_id for job in before.values() if job.state is JobState.QUEUED))
    await queue.close()
    with pytest.raises(UserError, match="--force"):
        ops.restore(filled.places, output, QUIET)
    assert ops.restore(filled.places, output, QUIET, force=True) == counts
    assert await filled.jobs() == before

    # At the backup's lower counts Prometheus would take all of them for new ones.
    assert filled.counts() == ""
    queue = filled.queue()
    assert (await queue.tick()).grace, "nobody could renew the leases meanwhile"
    await queue.close()
    # A restart finds it too, with what was written since: Redis goes on with the directory that was put there.
    queue = filled.queue()
    late = await add(queue)
    await queue.close()
    filled.engine.compose(filled.folder, "restart", "redis")
    filled.engine.compose(filled.folder, "up", "--detach", "--wait", "redis")
    assert (await filled.jobs()).keys() == {*before, late}


async def test_a_new_machine_takes_it_before_anything_runs(filled: Machine) -> None:
    before = await filled.jobs()
    output, _ = filled.backup()
    filled.engine.compose(filled.folder, "down", "--volumes")
    assert ops.restore(filled.places, output, QUIET)["jobs"] == 5
    assert await filled.jobs() == before


async def test_a_damaged_file_is_refused_before_anything_stops(filled: Machine, tmp_path: Path) -> None:
    output, _ = filled.backup()
    whole = output.read_bytes()
    broken = tmp_path / "broken.tar"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"not a whole backup|damaged"):
        ops.restore(filled.places, broken, QUIET, force=True)
    at = whole.index(b"REDIS0") + 60
    broken.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(UserError, match="damaged"):
        ops.restore(filled.places, broken, QUIET, force=True)
    broken.write_bytes(b"not a tar at all")
    with pytest.raises(UserError, match="not a whole backup"):
        ops.restore(filled.places, broken, QUIET, force=True)
    assert len(await filled.jobs()) == 5


async def test_a_failed_restore_leaves_the_queue_as_it_was(
    filled: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up half-way, and data that Redis itself cannot read: what was there goes on."""
    before = await filled.jobs()
    output, _ = filled.backup()
    prepare = ops._PREPARE
    monkeypatch.setattr(ops, "_PREPARE", prepare.replace("cat > $base", "{ head -c 100; cat > /dev/full; } > $base"))
    with pytest.raises(ToolError, match="No space left"):
        ops.restore(filled.places, output, QUIET, force=True)
    monkeypatch.setattr(ops, "_PREPARE", prepare)
    assert await filled.jobs() == before

    rubbish = tmp_path / "rubbish.tar"
    with tarfile.open(output) as archive:
        archive.extractall(tmp_path / "parts", filter="data")
    data = (tmp_path / "parts/queue.rdb").read_bytes()[:-9] + b"\xff" * 9
    manifest = json.loads((tmp_path / "parts/manifest.json").read_text())
    (tmp_path / "parts/queue.rdb").write_bytes(data)
    manifest["sha256"] = ops.hashlib.sha256(data).hexdigest()
    (tmp_path / "parts/manifest.json").write_text(json.dumps(manifest))
    with tarfile.open(rubbish, "w") as archive:
        for name in ("manifest.json", "queue.rdb"):
            archive.add(tmp_path / "parts" / name, name)
    with pytest.raises(ToolError):
        ops.restore(filled.places, rubbish, QUIET, force=True)
    assert await filled.jobs() == before
    assert "appendonlydir.new" not in filled.shell("ls /data")


@pytest.mark.parametrize("step", ["_PREPARE", "_SWAP"])
async def test_a_restore_that_fails_on_one_host_changes_none(
    filled: Machine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The second host is the first one under another name, which its commands do not reach."""
    output, _ = filled.backup()
    queue = filled.queue()
    await add(queue)
    await queue.close()
    before = await filled.jobs()
    (place,) = filled.places
    other = dataclasses.replace(place, host=dataclasses.replace(place.host, name="other"))
    at_rest = ops._at_rest

    def cut_off(place: Place, script: str, *arguments: str) -> list[str]:
        cut = place is other and script == getattr(ops, step)
        return ["sh", "-c", "echo no route to host >&2; exit 255"] if cut else at_rest(place, script, *arguments)

    monkeypatch.setattr(ops, "_at_rest", cut_off)
    with pytest.raises(ToolError, match="no route to host"):
        ops.restore([place, other], output, QUIET, force=True)
    assert await filled.jobs() == before
    if step == "_PREPARE":
        assert "appendonlydir.new" not in filled.shell("ls /data")


async def test_a_swap_that_was_done_but_never_told_of_is_undone(
    filled: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await filled.jobs()
    output, _ = filled.backup()
    queue = filled.queue()
    await add(queue)
    await queue.close()
    after = await filled.jobs()
    monkeypatch.setattr(ops, "_SWAP", ops._SWAP + "trap - EXIT; exit 255\n")
    with pytest.raises(ToolError):
        ops.restore(filled.places, output, QUIET, force=True)
    assert await filled.jobs() == after != before
    assert "appendonlydir.new" not in filled.shell("ls /data")


async def test_what_there_was_comes_back_after_a_power_cut_between_two_names(filled: Machine) -> None:
    before = await filled.jobs()
    filled.engine.compose(filled.folder, "stop", "redis")
    filled.shell("mv /data/appendonlydir /data/appendonlydir.before-restore")
    filled.engine.compose(filled.folder, "up", "--detach", "--wait", "redis")
    assert await filled.jobs() == before


async def test_a_host_that_does_not_start_keeps_no_other_from_it(
    filled: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first host is gone after the copy."""
    output, _ = filled.backup()
    (place,) = filled.places
    gone = dataclasses.replace(place, host=dataclasses.replace(place.host, name="gone"), folder=tmp_path / "gone")
    monkeypatch.setattr(ops, "_prepare", lambda *_: None)
    with pytest.raises(ToolError):
        ops.restore([gone, place], output, QUIET, force=True)
    assert len(await filled.jobs()) == 5


async def test_a_swap_that_breaks_off_leaves_the_queue_as_it_was(
    filled: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await filled.jobs()
    output, _ = filled.backup()
    monkeypatch.setattr(ops, "_SWAP", ops._SWAP.replace("mv appendonlydir.new appendonlydir", "false"))
    with pytest.raises(ToolError):
        ops.restore(filled.places, output, QUIET, force=True)
    assert await filled.jobs() == before


async def test_a_backup_without_a_running_redis_leaves_no_file(filled: Machine) -> None:
    filled.engine.compose(filled.folder, "stop", "redis")
    with pytest.raises(Exception, match="no Redis of this cluster answers"):
        filled.backup()
    assert not (filled.folder.parent / "queue.tar").exists()
