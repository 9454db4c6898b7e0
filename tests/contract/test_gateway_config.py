"""The rendered nginx configuration is one that the gateway image's own nginx accepts."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
import pytest

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "config" / "nginx"
IMAGE = "animatediff-ha/gateway:dev"


@dataclass(frozen=True)
class Gateway:
    server_name: str = "video.example.org"
    tls: bool = False
    balance: str = "cookie"
    proxy_timeout_seconds: int = 60
    max_body_bytes: int = 16 << 20
    submit_rate_per_second: int = 10
    worker_connections: int = 4096
    https_port: int = 443


def render(gateway: Gateway, folder: Path) -> Path:
    environment = jinja2.Environment(  # noqa: S701  (no HTML)
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    folder.mkdir(parents=True, exist_ok=True)
    for source in TEMPLATES.iterdir():
        if source.suffix == ".j2":
            text = environment.get_template(source.name).render(gateway=gateway)
            (folder / source.stem).write_text(text)
        else:
            shutil.copyfile(source, folder / source.name)
    return folder


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=300, check=False)


def require_image() -> str:
    """The gateway image, built where it is absent; without Docker the test is skipped, or fails where CI is set."""
    if shutil.which("docker") is None or docker("info").returncode != 0:
        if os.environ.get("CI"):
            pytest.fail("no Docker engine answers, and CI is set")
        pytest.skip("no Docker engine answers")
    if docker("image", "inspect", IMAGE).returncode != 0:
        base = "BASE=" + os.environ.get("ANIMATEDIFF_BASE_IMAGE", "animatediff-ha/base:trixie")
        context = str(ROOT / "images" / "gateway")
        built = docker("buildx", "build", "--load", "--build-arg", base, "--tag", IMAGE, context)
        assert built.returncode == 0, built.stderr
    return IMAGE


@pytest.fixture(scope="module")
def image() -> str:
    return require_image()


def certificate(folder: Path) -> None:
    """A self-signed pair, as the generator would leave in secrets/."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=video.example.org", "-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    (folder / "tls.key").chmod(0o644)


def nginx_test(image: str, gateway: Gateway, folder: Path) -> subprocess.CompletedProcess[str]:
    folder.chmod(0o755)
    configuration = render(gateway, folder / "nginx")
    token = folder / "cluster_token.nginx"
    token.write_text('proxy_set_header Authorization "Bearer abc";\n')
    mounts = ["-v", f"{configuration}:/etc/appliance-nginx:ro", "-v", f"{token}:/run/secrets/cluster_token.nginx:ro"]
    if gateway.tls:
        certificate(folder)
        for name in ("tls.crt", "tls.key"):
            mounts += ["-v", f"{folder / name}:/etc/nginx/tls/{name}:ro"]
    return docker(
        "run", "--rm", "--label", "team=gateway", "--read-only", "--cap-drop", "ALL", "--network", "none",
        "--security-opt", "no-new-privileges:true", "--tmpfs", "/tmp:mode=1777",
        "--tmpfs", "/run/gateway:uid=10001,gid=10001,mode=0700", *mounts, image, "-t",
    )  # fmt: skip


@pytest.mark.docker
@pytest.mark.parametrize(
    "gateway",
    [
        Gateway(),
        Gateway(balance="ip_hash", server_name="_"),
        Gateway(tls=True),
        Gateway(tls=True, https_port=8443, server_name="_"),
    ],
    ids=["plain", "ip_hash", "tls", "tls-port"],
)
def test_nginx_accepts_the_rendered_configuration(image: str, gateway: Gateway, tmp_path: Path) -> None:
    result = nginx_test(image, gateway, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "[warn]" not in result.stderr
    assert "[alert]" not in result.stderr


@pytest.mark.docker
def test_nginx_refuses_a_broken_one(image: str, tmp_path: Path) -> None:
    """Proof that the test above can fail."""
    result = nginx_test(image, replace(Gateway(), server_name="a; nonsense on"), tmp_path)
    assert result.returncode != 0
    assert "nonsense" in result.stderr


def test_a_post_is_never_marked_safe_to_repeat(tmp_path: Path) -> None:
    directives = [
        line.split("#")[0].split()
        for path in render(Gateway(), tmp_path).iterdir()
        for line in path.read_text().splitlines()
    ]
    retried = [words for words in directives if words[:1] == ["proxy_next_upstream"]]
    assert retried
    assert not [words for words in retried if "non_idempotent;" in words or "non_idempotent" in words]


def test_the_redirect_names_the_public_port(tmp_path: Path) -> None:
    standard = (render(Gateway(tls=True), tmp_path / "a") / "nginx.conf").read_text()
    assert "return 308 https://video.example.org$request_uri;" in standard
    other = (render(Gateway(tls=True, https_port=8443), tmp_path / "b") / "nginx.conf").read_text()
    assert "return 308 https://video.example.org:8443$request_uri;" in other
