"""What has compose make a service anew. With docker compose itself: `tests/integration/test_secret_marks.py`."""

from __future__ import annotations

import hashlib
import re
import stat
from pathlib import Path

import pytest
import yaml

from generator import secret_marks, tree
from generator.keys import KeyRole
from generator.plan import plan
from generator.planned import Plan
from generator.render import render
from generator.secrets import for_host, lay_out
from generator.sources import read_sources
from tests.unit.generator.clusters import logged, monitored, three_hosts, with_dashboards
from tests.unit.generator.test_secrets import UID, store

PLANS = [plan(cluster) for cluster in (three_hosts(), monitored(), with_dashboards(), logged())]


def marks(host: Path) -> dict[str, str]:
    lines = (host / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("the_plan", PLANS)
def test_every_service_bears_the_marks_of_what_it_mounts(tmp_path: Path, the_plan: Plan) -> None:
    lay_out(the_plan, tmp_path, store(tmp_path).read(), uid=UID)
    for name, files in render(the_plan, read_sources()):
        found, used = marks(tmp_path / name), set()
        for service in yaml.safe_load(files["compose.yaml"])["services"].values():
            asked = re.findall(r"\$\{(\w+):-\}", service["labels"].get("appliance.secrets", ""))
            mounted = {one["source"] if isinstance(one, dict) else one for one in service.get("secrets", ())}
            assert len(asked) == len(mounted - {"api_keys"})
            used |= set(asked)
        assert used == found.keys()
        assert all(re.fullmatch("[0-9a-f]{16}", value) for value in found.values())


def test_a_mark_changes_with_its_secret_and_with_nothing_else(tmp_path: Path) -> None:
    made, the_plan = store(tmp_path), PLANS[0]
    made.lay_out(the_plan, tmp_path, uid=UID)
    before = marks(tmp_path / "gpu-01")
    inode = (tmp_path / "gpu-01/.env").stat().st_ino
    made.add_api_key("ada", KeyRole.USER)
    made.create_missing(("new.example.net",), tls=True)
    made.lay_out(the_plan, tmp_path, uid=UID)
    assert (tmp_path / "gpu-01/.env").stat().st_ino == inode, "both are seen by who runs"
    made.rotate("cluster_token")
    made.lay_out(the_plan, tmp_path, uid=UID)
    after = marks(tmp_path / "gpu-01")
    assert {name for name in before if before[name] != after[name]} == {
        "SECRET_CLUSTER_TOKEN",
        "SECRET_CLUSTER_TOKEN_NGINX",
    }


def test_whatever_was_cut_off_the_next_run_marks_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stateless: neither a broken-off `up` nor `secrets` in between makes anybody forget who has an old copy."""
    made, the_plan = store(tmp_path), PLANS[0]
    made.lay_out(the_plan, tmp_path, uid=UID)
    before = marks(tmp_path / "gpu-02")
    made.rotate("redis_password")
    with monkeypatch.context() as cut:
        cut.setattr("generator.secrets._mark", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            made.lay_out(the_plan, tmp_path, uid=UID)
    for _ in range(2):
        made.lay_out(the_plan, tmp_path, uid=UID)
        assert marks(tmp_path / "gpu-02")["SECRET_REDIS_PASSWORD"] != before["SECRET_REDIS_PASSWORD"]


def test_an_operator_s_own_lines_stay(tmp_path: Path) -> None:
    made, the_plan = store(tmp_path), PLANS[0]
    file = tmp_path / "gpu-01/.env"
    file.parent.mkdir()
    file.write_bytes(b"# mine\nSECRET_OF_MINE=\xff\nMIRROR=x")
    file.chmod(0o640)
    for _ in range(2):
        made.rotate("cluster_token")
        made.lay_out(the_plan, tmp_path, uid=UID)
    lines = file.read_bytes().splitlines()
    assert lines[:3] == [b"# mine", b"SECRET_OF_MINE=\xff", b"MIRROR=x"]
    assert len(lines) == 3 + len(marks(tmp_path / "gpu-02"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "gpu-02/.env").stat().st_mode) == 0o644


def test_rendering_leaves_the_marks_alone(tmp_path: Path) -> None:
    the_plan = PLANS[0]
    tree.write(tmp_path, render(the_plan, read_sources()))
    lay_out(the_plan, tmp_path, store(tmp_path).read(), uid=UID)
    before = (tmp_path / "gpu-01/.env").read_bytes()
    assert tree.diff(tmp_path, render(the_plan, read_sources())) == []
    tree.write(tmp_path, render(PLANS[1], read_sources()))
    assert (tmp_path / "gpu-01/.env").read_bytes() == before


def test_a_mark_tells_no_password_to_who_guesses(tmp_path: Path) -> None:
    """The file is open to everybody on the host, and a mail server's password may be a short one."""
    made, the_plan = store(tmp_path), PLANS[0]
    made.lay_out(the_plan, tmp_path, uid=UID)
    before, values = marks(tmp_path / "gpu-02"), made.read()
    digests = {hashlib.sha256(content).hexdigest()[:16] for content in values.values()}
    assert not digests & set(before.values())
    made.rotate("marks_key")
    made.lay_out(the_plan, tmp_path, uid=UID)
    after = marks(tmp_path / "gpu-02")
    assert [name for name in before if after[name] == before[name]] == []
    assert all("marks_key" not in for_host(host, values) for host in the_plan.hosts), "it stays where it was made"


def test_a_cluster_of_before_gets_its_key_with_the_next_marks(tmp_path: Path) -> None:
    """What only reads the secrets, a backup before the upgrade for one, needs none."""
    made = store(tmp_path)
    (made.folder / "marks_key").unlink()
    assert "marks_key" not in made.read()
    made.lay_out(PLANS[0], tmp_path, uid=UID)
    assert stat.S_IMODE((made.folder / "marks_key").stat().st_mode) == 0o600
    assert marks(tmp_path / "gpu-02")


def test_no_two_secrets_share_a_mark(tmp_path: Path) -> None:
    values = store(tmp_path).read()
    for the_plan in PLANS:
        for host in the_plan.hosts:
            wanted = for_host(host, values)
            marked = [name for name in wanted if "/" not in name and name != "api_keys"]
            assert len(secret_marks.with_marks("", wanted, b"key").splitlines()) == len(marked)
            assert len(set(secret_marks.label(marked).split())) == len(marked)
