"""The rendered nginx configuration is one that the gateway image's own nginx accepts."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.api.readiness import ANSWER_SECONDS
from generator.certificates import make_authority, make_server
from generator.plan import plan
from generator.planned import Plan
from generator.render import render_host
from generator.secrets import nginx_header
from generator.sources import read_sources
from tests.unit.generator.clusters import three_hosts

SERVER_NAME = "video.example.org"
PLAIN = {"mode": "none"}


def gateway_plan(**gateway: Any) -> Plan:
    """Three hosts with this `gateway:` section in cluster.yaml; the first of them is a gateway."""
    return plan(three_hosts(gateway={"server_name": SERVER_NAME, **gateway}))


def render(the_plan: Plan, folder: Path) -> Path:
    """What the first host's gateway mounts, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in render_host(the_plan.cluster, the_plan.hosts[0], read_sources()).items():
        if name.startswith("config/nginx/"):
            (folder / Path(name).name).write_bytes(content)
    return folder


def sysctls(the_plan: Plan) -> list[str]:
    """`docker run`'s words for what Compose sets for the first host's gateway."""
    files = render_host(the_plan.cluster, the_plan.hosts[0], read_sources())
    found = yaml.safe_load(files["compose.yaml"])["services"]["gateway"]["sysctls"]
    return [word for name, value in found.items() for word in ("--sysctl", f"{name}={value}")]


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=300, check=False)


def certificate(folder: Path, name: str = SERVER_NAME) -> None:
    """A pair of the cluster's own authority, readable for the container's user."""
    key, chain = make_server(*make_authority(), (name,))
    (folder / "tls.key").write_bytes(key)
    (folder / "tls.crt").write_bytes(chain)


def nginx_test(tag: str, the_plan: Plan, folder: Path) -> subprocess.CompletedProcess[str]:
    folder.chmod(0o755)
    configuration = render(the_plan, folder / "nginx")
    token = folder / "cluster_token.nginx"
    token.write_bytes(nginx_header(b"abc"))
    mounts = ["-v", f"{configuration}:/etc/appliance-nginx:ro", "-v", f"{token}:/run/secrets/cluster_token.nginx:ro"]
    gateway = the_plan.hosts[0].gateway
    if gateway and gateway.tls:
        certificate(folder)
        for name in ("tls.crt", "tls.key"):
            mounts += ["-v", f"{folder / name}:/etc/nginx/tls/{name}:ro"]
    return docker(
        "run", "--rm", "--read-only", "--cap-drop", "ALL", "--network", "none",
        "--security-opt", "no-new-privileges:true", "--tmpfs", "/tmp:mode=1777",
        "--tmpfs", "/run/gateway:uid=10001,gid=10001,mode=0700", *mounts, f"animatediff-ha/gateway:{tag}", "-t",
    )  # fmt: skip


@pytest.mark.docker
@pytest.mark.parametrize(
    "gateway",
    [
        {"tls": PLAIN},
        {"tls": PLAIN, "balance": "ip_hash", "server_name": "_"},
        {"tls": PLAIN, "balance": "least_busy"},
        {},
        {"https_port": 8443, "server_name": "_"},
        {"tls": {"mode": "acme"}},
        {"tls": {"mode": "files", "certificate": "/etc/video/a.crt", "key": "/etc/keys/a.key"}},
    ],
    ids=["plain", "ip_hash", "least_busy", "tls", "tls-port", "acme", "files"],
)
def test_nginx_accepts_the_rendered_configuration(images: str, gateway: dict[str, Any], tmp_path: Path) -> None:
    result = nginx_test(images, gateway_plan(**gateway), tmp_path)
    assert result.returncode == 0, result.stderr
    assert "[warn]" not in result.stderr
    assert "[alert]" not in result.stderr


@pytest.mark.docker
def test_nginx_refuses_a_broken_one(images: str, tmp_path: Path) -> None:
    """Proof that the test above can fail."""
    the_plan = gateway_plan(tls=PLAIN)
    first = the_plan.hosts[0]
    assert first.gateway
    broken = replace(first, gateway=replace(first.gateway, server_name="a; nonsense on"))
    result = nginx_test(images, replace(the_plan, hosts=(broken,)), tmp_path)
    assert result.returncode != 0
    assert "nonsense" in result.stderr


def test_a_full_tmp_leaves_nginx_its_memory() -> None:
    """/tmp holds request bodies and counts as the container's memory: reaching the limit would kill nginx."""
    the_plan = gateway_plan()
    compose = render_host(the_plan.cluster, the_plan.hosts[0], read_sources())["compose.yaml"]
    service = yaml.safe_load(compose)["services"]["gateway"]
    (tmp,) = service["tmpfs"]
    size = int(tmp.partition("size=")[2].removesuffix("m"))
    assert 2 * size <= int(service["deploy"]["resources"]["limits"]["memory"].removesuffix("m"))


def test_an_api_answers_before_any_controller_gives_up() -> None:
    """What does not answer is gone; what says that it lacks Redis still judges keys."""
    for images in ({"webui": "cuda"}, {"webui": "cpu"}):
        gateway = plan(three_hosts(images=images)).hosts[0].gateway
        assert gateway
        assert gateway.probe_timeout_seconds / 2 >= ANSWER_SECONDS


def test_a_post_is_never_marked_safe_to_repeat(tmp_path: Path) -> None:
    directives = [
        line.split("#")[0].split()
        for path in render(gateway_plan(), tmp_path).iterdir()
        for line in path.read_text().splitlines()
    ]
    retried = [words for words in directives if words[:1] == ["proxy_next_upstream"]]
    assert retried
    assert not [words for words in retried if "non_idempotent;" in words or "non_idempotent" in words]


def test_the_redirect_names_the_public_port(tmp_path: Path) -> None:
    standard = (render(gateway_plan(), tmp_path / "a") / "nginx.conf").read_text()
    assert "return 308 https://video.example.org$request_uri;" in standard
    other = (render(gateway_plan(https_port=8443), tmp_path / "b") / "nginx.conf").read_text()
    assert "return 308 https://video.example.org:8443$request_uri;" in other
