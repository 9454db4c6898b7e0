"""Every alert tells when it must, is silent when it must, and ends: the stories in alerts/ as promtool's unit tests.

promtool compares an alert's annotations with their whole text. They are left out of the rules that it gets, and looked
at by themselves: each names only what its alert has.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from generator.model import Cluster
from generator.plan import plan
from generator.render import render_host
from generator.sources import read_sources
from tests.unit.generator.clusters import monitored

pytestmark = pytest.mark.docker
STORIES = sorted((Path(__file__).parent / "alerts").glob("*.yaml"))
INTERVAL = "15s"
LABEL = re.compile(r"\$labels\.([a-z_]+)")


@cache
def rules() -> dict[str, Any]:
    """File name → the rules of a monitoring host, with every default."""
    return rules_of(monitored())


def rules_of(cluster: Cluster) -> dict[str, Any]:
    the_plan = plan(cluster)
    files = render_host(the_plan.cluster, the_plan.hosts[0], read_sources())
    prefix = "config/prometheus/rules/"
    return {name.removeprefix(prefix): yaml.safe_load(text) for name, text in files.items() if name.startswith(prefix)}


def names_in(content: dict[str, Any]) -> Iterator[str]:
    for group in content["groups"]:
        yield from (rule["alert"] for rule in group["rules"] if "alert" in rule)


def alerts() -> Iterator[dict[str, Any]]:
    for content in rules().values():
        for group in content["groups"]:
            yield from (rule for rule in group["rules"] if "alert" in rule)


@dataclass(frozen=True)
class Story:
    alert: str
    told: dict[str, Any]
    interval: str

    @property
    def fires(self) -> dict[str, list[dict[str, str]]]:
        return self.told.get("fires", {})

    def as_test(self) -> dict[str, Any]:
        moments = [(time, []) for time in (*self.told.get("silent", ()), *self.told.get("clears", ()))]
        return {
            "name": f"{self.alert}: {self.told['story']}",
            "interval": self.interval,
            "input_series": [{"series": name, "values": values} for name, values in self.told["series"].items()],
            "alert_rule_test": [
                {"eval_time": time, "alertname": self.alert, "exp_alerts": [{"exp_labels": one} for one in expected]}
                for time, expected in [*moments, *self.fires.items()]
            ],
        }


def stories(file: Path) -> list[Story]:
    content = yaml.load(file.read_text(), Loader=yaml.BaseLoader)  # noqa: S506  (all is text: 0x20 is no number)
    interval = content.pop("interval", INTERVAL)
    return [Story(alert, one, one.get("interval", interval)) for alert, many in content.items() for one in many]


ALL = [story for file in STORIES for story in stories(file)]


def without_annotations(content: dict[str, Any]) -> dict[str, Any]:
    groups = [
        {**group, "rules": [{k: v for k, v in rule.items() if k != "annotations"} for rule in group["rules"]]}
        for group in content["groups"]
    ]
    return {"groups": groups}


def promtool(tag: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)  # it reads as uid 10001
    options = ["--rm", "--network", "none", "-v", f"{folder}:/t:ro", "--entrypoint", "promtool"]
    argv = ["docker", "run", *options, f"animatediff-ha/prometheus:{tag}", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)


def run_stories(tag: str, folder: Path, these: list[Story], content: dict[str, Any]) -> str:
    """What promtool has against them; nothing when it is content."""
    names = []
    for name, one in content.items():
        (folder / name).write_text(yaml.safe_dump(without_annotations(one)))
        names.append(name)
    by_interval: dict[str, list[Story]] = {}
    for story in these:
        by_interval.setdefault(story.interval, []).append(story)
    for interval, some in by_interval.items():
        tests = {"rule_files": names, "evaluation_interval": interval, "tests": [story.as_test() for story in some]}
        (folder / f"test-{interval}.yaml").write_text(yaml.safe_dump(tests, sort_keys=False))
    done = promtool(tag, folder, "test", "rules", *(f"/t/test-{interval}.yaml" for interval in by_interval))
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == ("FAILED" not in said), said
    return said if done.returncode else ""


@pytest.mark.parametrize("file", STORIES, ids=lambda file: file.stem)
def test_the_alerts_do_as_told(images: str, tmp_path: Path, file: Path) -> None:
    these = stories(file)
    wanted = {story.alert for story in these}
    content = {name: one for name, one in rules().items() if wanted & set(names_in(one))}
    assert run_stories(images, tmp_path, these, content) == ""


def test_a_story_that_is_not_so_fails(images: str, tmp_path: Path) -> None:
    """Proof that the test above can fail: with one `for` left out, one threshold changed, one alert that says less."""
    (lost,) = (story for story in ALL if story.alert == "GpuLost")
    gpu = rules()["gpu.yml"]
    for change in ({"for": "0s"}, {"expr": "nvidia_smi_gpu_up == 2"}, {"labels": {"severity": "warning"}}):
        changed = [{**rule, **change} if rule.get("alert") == "GpuLost" else rule for rule in gpu["groups"][0]["rules"]]
        said = run_stories(images, tmp_path, [lost], {"gpu.yml": {"groups": [{"name": "gpu", "rules": changed}]}})
        assert "alertname: GpuLost" in said, change


def test_the_memory_of_a_foreign_a1111_is_told_and_drains_nobody(images: str, tmp_path: Path) -> None:
    """It does not tell what its torch only keeps: a healthy one that is busy would be taken out of service."""
    content = rules_of(monitored(webui={"engine": "a1111", "image": "studio/a1111:1"}))["gpu_memory.yml"]
    (high,) = (rule for rule in content["groups"][0]["rules"] if "alert" in rule)
    assert "action" not in high["labels"]
    assert "gateways" not in high["annotations"]["description"]
    told = next(story.told for story in ALL if story.alert == "GpuMemoryHigh")
    warning = {"node_name": "a", "gpu_id": "0", "uuid": "U0", "severity": "warning"}
    fires = {moment: [warning] for moment in told["fires"]}
    story = Story("GpuMemoryHigh", {**told, "fires": fires}, INTERVAL)
    assert run_stories(images, tmp_path, [story], {"gpu_memory.yml": content}) == ""


def test_no_alert_is_without_a_story_of_its_beginning_its_end_and_its_silence() -> None:
    for rule in alerts():
        static = rule["labels"].items()
        told = [story for story in ALL if story.alert == rule["alert"]]
        assert told, f"{rule['alert']} has no story"
        of_this = [
            story for story in told if any(static <= one.items() for all_ in story.fires.values() for one in all_)
        ]
        assert of_this, f"{rule['alert']} {dict(static)} is never told"
        always = any(story.told.get("always") for story in of_this)
        assert always or any(story.told.get("clears") for story in of_this), (
            f"{rule['alert']} {dict(static)} never ends"
        )
        assert always or any(story.told.get("silent") for story in of_this), f"{rule['alert']} is never silent"
    unknown = {story.alert for story in ALL} - {rule["alert"] for rule in alerts()}
    assert not unknown, "stories of alerts that do not exist"


def test_only_the_watchdog_is_always_told() -> None:
    assert [story.alert for story in ALL if story.told.get("always")] == ["Watchdog"]


def test_every_alert_says_how_bad_what_and_what_to_do() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), rule["alert"]
        assert {"summary", "description", "runbook"} == rule["annotations"].keys(), rule["alert"]
        for name, text in rule["annotations"].items():
            assert len(text) < (100 if name == "summary" else 420), f"{rule['alert']}.{name} is too long for a message"
            assert "  " not in text, f"{rule['alert']}.{name}"
            assert "{%" not in text, f"{rule['alert']}.{name}"


def test_an_annotation_names_only_what_its_alert_has() -> None:
    for rule in alerts():
        static = rule["labels"].items()
        fired = [
            one for story in ALL if story.alert == rule["alert"] for all_ in story.fires.values() for one in all_
            if static <= one.items()
        ]  # fmt: skip
        named = set(LABEL.findall(" ".join(rule["annotations"].values())))
        for one in fired:
            assert named <= one.keys(), f"{rule['alert']} names {named - one.keys()}"


def test_names_of_alerts_are_told_apart_by_severity_or_window() -> None:
    seen = [(rule["alert"], *sorted(rule["labels"].items())) for rule in alerts()]
    assert len(seen) == len(set(seen))
