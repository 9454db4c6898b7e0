"""Who is let in, and how the optional users of a node are read."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from webui.guard import Guard
from webui.settings import Secret, SettingsError, read_settings


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


def client(users: str = "") -> TestClient:
    app = Starlette(routes=[Route("/{path:path}", hello)])
    return TestClient(Guard(app, Secret("t0ken"), Secret(users)))


def basic(pair: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


@pytest.mark.parametrize("path", ["/", "/metrics", "/sdapi/v1/loras", "/internal/progress", "/nowhere"])
def test_without_users_the_token_alone_opens(path: str) -> None:
    assert client().get(path).status_code == 401
    assert client().get(path, headers=basic(":")).status_code == 401
    assert client().get(path, headers={"Authorization": "Basic "}).status_code == 401
    assert client().get(path, headers={"Authorization": "Bearer t0ken"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/sdapi/v1/loras", "/internal/state"])
def test_users_open_what_is_theirs(path: str) -> None:
    asking = client("ada:pw\neve:o:ther")
    for pair, status in (("ada:pw", 200), ("eve:o:ther", 200), ("ada:o:ther", 401), ("ada:", 401), ("", 401)):
        assert asking.get(path, headers=basic(pair)).status_code == status


@pytest.mark.parametrize("path", ["/internal/generate", "/internal/interrupt"])
def test_what_writes_into_the_storage_is_the_agents(path: str) -> None:
    assert client("ada:pw").post(path, headers=basic("ada:pw")).status_code == 401
    assert client("ada:pw").post(path, headers={"Authorization": "Bearer t0ken"}).status_code in (200, 405)


def test_the_ping_is_open_and_refusals_have_their_readers_shapes() -> None:
    assert client().get("/internal/ping").status_code == 200
    refusal = client().get("/sdapi/v1/loras")
    assert refusal.json()["detail"] == "Incorrect username or password"
    assert refusal.headers["www-authenticate"] == "Basic"
    assert client().get("/").headers["www-authenticate"] == "Bearer"
    asked = 'Basic realm="AnimateDiff", charset="UTF-8"'  # a realm is a must, and umlauts are UTF-8
    assert client("ada:pw").get("/").headers["www-authenticate"] == asked
    assert client("Jörg:pässwörd").get("/", headers=basic("Jörg:pässwörd")).status_code == 200
    assert client("ada:pw").get("/").headers["content-type"] == "application/problem+json"


def settings_with(folder: Path, users: str) -> str:
    (folder / "cluster_token").write_text("t0ken")
    (folder / "api_auth").write_text(users)
    return read_settings({"APPLIANCE_SECRETS_DIR": str(folder), "APPLIANCE_ENGINE": "synthetic"}).api_auth.value


def test_users_come_as_upstreams_option_has_them_or_one_a_line(tmp_path: Path) -> None:
    assert settings_with(tmp_path, "ada:pw, eve:o:ther\n# nobody:x\nbob:pw\n") == "ada:pw\neve:o:ther\nbob:pw"


@pytest.mark.parametrize("users", ["ada", "ada:", ":pw", "ada:pw,eve"])
def test_a_user_without_a_password_is_refused_and_not_shown(tmp_path: Path, users: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_with(tmp_path, users)
    assert "is not user:password" in str(caught.value)
    assert "ada" not in str(caught.value).replace(str(tmp_path), "")
