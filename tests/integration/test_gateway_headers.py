"""What browsers are told, through the real gateway container: policies, and how long a file may be kept."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

import httpx
import pytest

from tests.contract.test_gateway_config import gateway_plan
from tests.integration.gateway_socket_node import KEY
from tests.integration.gateway_stage import PLAIN
from tests.integration.test_gateway_sockets import Stage, on_stage

FOR_EVER = "private, max-age=31536000, immutable"

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def stage(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with on_stage(tmp_path_factory.mktemp("gateway"), gateway_plan(tls={"mode": "none"}), images) as made:
        made.push_all()
        yield made


def get(stage: Stage, path: str, **headers: str) -> httpx.Headers:
    """The headers of an answer to which the node has added these."""
    query = urlencode({name.replace("_", "-"): value for name, value in headers.items()})
    return httpx.get(f"{stage.setup.base}{path}?{query}", headers=KEY, verify=PLAIN, timeout=5).headers


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/webui/assets/index-2e429704.js", FOR_EVER),
        ("/webui/theme.0123abcd4567.css", FOR_EVER),
        ("/webui/", "no-cache"),
        ("/webui/page/app.js", "no-cache"),
        ("/webui/photo-20240101.png", "no-cache"),  # a date is no hash
        ("/webui/a-defaced.js", "no-cache"),
        ("/webui/index-2e429704.html", "no-cache"),
        ("/webui/index-2e4297.js", "no-cache"),
        ("/api/v1/index-2e429704.js", None),
    ],
)
def test_only_a_name_with_a_hash_is_kept_for_ever(stage: Stage, path: str, expected: str | None) -> None:
    assert get(stage, path).get("cache-control") == expected


def test_a_failed_answer_under_such_a_name_is_not_kept(stage: Stage) -> None:
    for status in ("302", "404", "500"):
        assert "cache-control" not in get(stage, "/webui/index-2e429704.js", status=status)
    stage.push()
    answer = httpx.get(stage.setup.base + "/webui/index-2e429704.js", headers=KEY, verify=PLAIN)
    stage.push_all()
    assert (answer.status_code, answer.headers["cache-control"]) == (503, "no-store")


def test_what_a_node_says_itself_is_left_alone(stage: Stage) -> None:
    said = get(
        stage, "/webui/index-2e429704.js", Cache_Control="no-store", Content_Security_Policy="default-src 'self'"
    )
    assert said.get_list("cache-control") == ["no-store"]
    assert said.get_list("content-security-policy") == ["default-src 'self'"]


def test_every_answer_has_a_policy_and_the_usual_headers_once(stage: Stage) -> None:
    theirs = {"X-Content-Type-Options": "x", "X-Frame-Options": "ALLOWALL", "Referrer-Policy": "unsafe-url",
              "Cross-Origin-Resource-Policy": "cross-origin", "Cross-Origin-Opener-Policy": "unsafe-none"}  # fmt: skip
    for path in ("/webui/page", "/api/v1/jobs", "/nothing", "/healthz", "/webui/internal/ping", "/"):
        headers = get(stage, path, **theirs)
        assert headers.get_list("x-content-type-options") == ["nosniff"], path
        assert headers.get_list("x-frame-options") == ["SAMEORIGIN"], path
        assert headers.get_list("referrer-policy") == ["same-origin"], path
        assert headers.get_list("cross-origin-resource-policy") == ["same-origin"], path
        assert headers.get_list("cross-origin-opener-policy") == ["same-origin"], path
        (policy,) = headers.get_list("content-security-policy")
        assert "frame-ancestors 'self'" in policy
        assert ("default-src 'none'" in policy) == (path != "/webui/page"), path


def test_other_sites_pages_read_nothing(stage: Stage) -> None:
    headers = get(stage, "/webui/page", Access_Control_Allow_Origin="*", Access_Control_Allow_Credentials="true")
    assert not [name for name in headers if name.startswith("access-control")]
