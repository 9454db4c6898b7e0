"""The node's page in a real Chromium, behind a prefix and a proxy that adds the token, as artists meet it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.integration.webui_browser import Browser, require_chromium
from tests.integration.webui_node import TOKEN, Node, wait_for
from tests.integration.webui_proxy import Proxy

STEP_SECONDS = 0.1
FAULTS = {"kill_at_step": 3, "only_prompt_contains": "CRASH"}
PLAYS = """
const video = document.querySelector("#player video");
return video ? [video.readyState, video.currentTime] : [0, 0];
"""
DROP = """
const canvas = new OffscreenCanvas(8, 8);
canvas.getContext("2d").fillRect(0, 0, 4, 4);
return canvas.convertToBlob().then((blob) => {
  const carried = new DataTransfer();
  carried.items.add(new File([blob], "dropped.png", { type: "image/png" }));
  const dropped = new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true });
  document.getElementById("drop").dispatchEvent(dropped);
});
"""
NO_SOCKETS = """
window.WebSocket = class {
  constructor() { setTimeout(() => this.onclose({}), 20); }
  close() {}
};
"""
SILENT_SOCKETS = """
window.WebSocket = class {
  constructor() { window.sockets = (window.sockets ?? 0) + 1; }
  close() {}
};
"""
# The page waits as long as people do; its waiting here takes a tenth of that.
TEN_TIMES_AS_FAST = """
const wait = window.setTimeout;
window.setTimeout = (act, milliseconds) => wait(act, milliseconds / 10);
"""
HELD_KEYS = """
for (let time = 0; time < 3; time += 1) {
  const key = new KeyboardEvent("keydown", { key: "Enter", ctrlKey: true, repeat: time > 1, bubbles: true });
  document.getElementById("prompt").dispatchEvent(key);
}
"""
SHOWN = """
const one = document.querySelector("#player video, #player img");
return one && (one.videoWidth || one.naturalWidth);
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    require_chromium()
    root = tmp_path_factory.mktemp("node")
    for name in ("ink", "watercolour"):
        store_lora(root / "models" / "lora" / f"{name}.safetensors")
    running = Node(
        root,
        APPLIANCE_SYNTHETIC_STEP_SECONDS=str(STEP_SECONDS),
        APPLIANCE_SYNTHETIC_FAULTS=json.dumps(FAULTS),
    )
    try:
        running.wait("ok")
        yield running
    finally:
        running.close()


def store_lora(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"lora_unet_x.alpha": np.zeros(1, np.float32)}, path)


@pytest.fixture(scope="module")
def proxy(node: Node) -> Iterator[Proxy]:
    running = Proxy(node.port, TOKEN)
    yield running
    running.close()


@pytest.fixture(scope="module")
def one(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(one: Browser, proxy: Proxy) -> Iterator[Browser]:
    """A fresh page of a browser that has been here before; every test ends with a clean console."""
    one.open(proxy.url)
    one.script("localStorage.clear()")
    one.open(proxy.url)
    one.complaints()
    wait_for(lambda: one.value("model"))
    yield one
    assert one.complaints() == []


def order(page: Browser, **fields: Any) -> None:
    """What the page says from now on is of this order: "ready" may still stand there from the one before."""
    page.fill(**{"prompt": "a paper boat", "width": 64, "height": 64, "frames": 8, "steps": 15, "seed": 7} | fields)
    page.script("document.getElementById('spoken').textContent = ''")
    page.find("generate").click()


def test_a_video_from_prompt_to_player(page: Browser, proxy: Proxy) -> None:
    assert page.text("node-name") == "<gpu-01>"
    order(page, steps=25)
    wait_for(lambda: page.is_shown("progress"))
    seen: set[float] = set()
    wait_for(lambda: seen.add(page.script("return document.getElementById('bar').value")) or len(seen) >= 4)  # type: ignore[func-returns-value]
    assert "step" in page.text("phase")
    wait_for(lambda: page.is_shown("preview"))
    assert page.script("return document.getElementById('preview').naturalWidth") > 0
    page.wait_until("spoken", "ready")
    wait_for(lambda: page.script(PLAYS)[0] >= 3)
    wait_for(lambda: page.script(PLAYS)[1] > 0)
    assert not page.is_shown("progress")
    assert "seed 7" in page.text("made-with")
    link = page.find("download").get_attribute("href")
    assert link is not None
    assert link.startswith(f"{proxy.url}local/runs/")
    length = page.script("return fetch(arguments[0]).then((answer) => answer.blob()).then((blob) => blob.size)", link)
    assert length > 500


FOLLOW = """
window.places = [];
const shown = (identity) => document.getElementById(identity).checkVisibility();
const top = () => document.getElementById('cancel').getBoundingClientRect().top;
const look = () => {
  if (shown('progress')) window.places.push([shown('preview'), top()]);
  if (window.places.length < 2000) requestAnimationFrame(look);
};
look();
"""
"""Writes down, for each frame in which there is progress, whether there is a preview and where the button is."""


def test_nothing_moves_away_from_under_the_pointer(page: Browser) -> None:
    """Whoever is about to press Cancel when the first preview comes must hit it, and not where it was."""
    for size in ({"width": 64, "height": 64}, {"width": 256, "height": 64}):
        page.script(FOLLOW)
        order(page, steps=40, **size)
        wait_for(lambda: page.is_shown("preview"))
        time.sleep(0.2)  # some frames more
        seen = page.script("return window.places")
        assert {with_preview for with_preview, _ in seen} == {False, True}
        assert len({top for _, top in seen}) == 1, seen
        page.find("cancel").click()
        page.wait_until("spoken", "Cancelled")


def test_every_kind_of_file_is_shown(page: Browser) -> None:
    for box in page.script("return [...document.querySelectorAll('[name=format]')].map((box) => box.value)"):
        page.script(
            "const box = document.querySelector(`[name=format][value=${arguments[0]}]`); box.checked || box.click()",
            box,
        )
    order(page, steps=3, frames=4)
    page.wait_until("spoken", "ready")
    tabs = page.script("return [...document.querySelectorAll('#tabs button')].map((tab) => tab.textContent)")
    assert tabs == ["MP4", "GIF", "WebP", "WebM", "PNG frames"]
    for number, name in enumerate(tabs, start=1):
        page.click(f"#tabs button:nth-child({number})")
        assert wait_for(lambda: page.script(SHOWN)) == 64
        assert name.removesuffix(" frames") in page.text("download")
    page.set_value("frame", 3)
    assert page.text("frame-shown") == "3 of 4"
    assert wait_for(lambda: page.script(SHOWN)) == 64


def test_cancel(page: Browser) -> None:
    order(page, steps=150)
    wait_for(lambda: "step" in page.text("phase"))
    page.find("cancel").click()
    page.wait_until("spoken", "Cancelled", 5)
    assert not page.is_shown("progress")
    wait_for(lambda: "cancelled" in page.text("history"))


def test_two_people_at_once(page: Browser, proxy: Proxy, tmp_path: Path) -> None:
    other = Browser(tmp_path / "profile")
    try:
        other.open(proxy.url)
        wait_for(lambda: other.value("model"))
        order(page, steps=140)
        wait_for(lambda: "step" in page.text("phase"))
        assert other.text("history") == "", "runs are this browser's own"
        order(other, prompt="another boat", steps=5)
        other.wait_until("phase", "Next in line: another video is being made")
        order(other, prompt="one more", steps=5)
        other.wait_until("phase", "Number 2 in line")
        page.wait_until("spoken", "ready", 30)
        other.wait_until("spoken", "ready", 30)
        assert "one more" in other.text("history")
        assert "one more" not in page.text("history")
        assert other.complaints() == []
    finally:
        other.close()


def test_what_is_wrong_stands_beside_its_field(page: Browser) -> None:
    order(page, width=7, steps=999, seed="a number")
    wait_for(lambda: page.script("return document.querySelectorAll('#form .field > .error').length") == 3)
    assert "64 to 1024" in page.text("width-error")
    assert "1 to 150" in page.text("steps-error")
    described = "const field = document.getElementById('width'); return [field.getAttribute('aria-invalid'), "
    described += "field.getAttribute('aria-describedby'), document.activeElement.id]"
    assert page.script(described) == ["true", "width-error", "width"], "the first wrong field has the focus"
    page.fill(width=64)
    assert page.script("return document.getElementById('width-error')") is None
    page.fill(steps=2, seed=1)
    page.find("generate").click()
    page.wait_until("spoken", "ready")
    # The browser itself notes every 422; there must be that one and nothing else.
    assert [line for line in page.complaints() if "422" not in line] == []


def test_a_start_image_is_sent(page: Browser, node: Node, tmp_path: Path) -> None:
    picture = tmp_path / "boat.png"
    Image.linear_gradient("L").convert("RGB").save(picture)
    page.find("init_image").send_keys(str(picture))
    wait_for(lambda: page.is_shown("drop-image") and page.is_shown("strength"))
    page.set_value("denoising_strength", 0.5)
    assert page.text("strength-shown") == "50 %"
    order(page, steps=4)
    page.wait_until("spoken", "ready")
    runs = page.script("return JSON.parse(localStorage.getItem('animatediff.runs'))")
    assert "init_image" not in runs[0]["request"], "pictures would fill the browser's small store"
    request = node.client.get(f"/local/runs/{runs[0]['id']}").json()["request"]
    assert request["init_image"]
    assert request["denoising_strength"] == 0.5
    page.click("#drop-clear")
    assert not page.is_shown("strength")
    page.script(DROP)
    wait_for(lambda: page.is_shown("drop-image"))
    assert page.text("drop-text") == "dropped.png"
    text = tmp_path / "boat.txt"
    text.write_text("no picture")
    page.find("init_image").send_keys(str(text))
    page.wait_until("form", "must be a PNG")


def test_loras_seeds_and_sizes(page: Browser, node: Node) -> None:
    page.click("[data-size='256x256']")
    assert (page.value("width"), page.value("height")) == ("256", "256")
    for name in ("ink", "watercolour", "ink"):
        page.set_value("lora-choice", name)
        page.click("#lora-add")
    rows = page.driver.find_elements("css selector", "#lora-list li")
    assert len(rows) == 2
    weight = rows[0].find_element("tag name", "input")
    weight.clear()
    weight.send_keys("0.6")
    page.find("dice").click()
    seed = page.value("seed")
    assert 0 <= int(seed) < 2**32
    page.find("no-seed").click()
    page.fill(prompt="with ink", width=64, height=64, frames=4, steps=3)
    page.find("generate").click()
    page.wait_until("spoken", "ready")
    run = page.script("return JSON.parse(localStorage.getItem('animatediff.runs'))[0].id")
    request = node.client.get(f"/local/runs/{run}").json()["request"]
    assert request["loras"] == [{"name": "ink", "weight": 0.6}, {"name": "watercolour", "weight": 1}]
    assert 0 <= request["seed"] < 2**32
    page.find("reuse-seed").click()
    assert page.value("seed") == str(request["seed"])
    weight.clear()
    weight.send_keys("9")
    page.find("generate").click()
    page.wait_until("loras-error", "weight")
    page.click("#lora-list button")
    assert [line for line in page.complaints() if "422" not in line] == []


def test_more_than_the_usual_fields(page: Browser, node: Node) -> None:
    page.click("#form summary")
    page.fill(clip_skip=2, context_batch_size=4, context_overlap=2)
    page.click("#closed_loop")
    page.click("#free_init")
    order(page, frames=8, steps=2)
    page.wait_until("spoken", "ready")
    run = page.script("return JSON.parse(localStorage.getItem('animatediff.runs'))[0].id")
    seen = node.client.get(f"/local/runs/{run}").json()
    asked = {"clip_skip": 2, "context_batch_size": 4, "context_overlap": 2, "closed_loop": True}
    assert seen["request"] | asked == seen["request"]
    assert seen["request"]["free_init"]["iterations"] == 3
    page.click("#closed_loop")
    page.click("#free_init")
    for name in ("clip_skip", "context_batch_size", "context_overlap"):
        page.set_value(name, "")


def test_an_old_runs_settings_are_taken_whole(page: Browser) -> None:
    """What it did not have is not kept from the run after it: its seed would make another video."""
    plain = [page.value(name) for name in ("clip_skip", "negative_prompt")]
    order(page, prompt="plain", frames=8, steps=2)
    page.wait_until("spoken", "ready")
    page.click("#form summary")
    page.fill(clip_skip=2, negative_prompt="blur")
    page.click("#closed_loop")
    page.click("#free_init")
    order(page, prompt="rich", frames=8, steps=2)
    page.wait_until("spoken", "ready")
    page.script("[...document.querySelectorAll('#history .card')].at(-1).click()")
    page.find("reuse").click()
    checked = "return ['closed_loop', 'free_init'].map((name) => document.getElementById(name).checked)"
    assert page.script(checked) == [False, False]
    assert [page.value(name) for name in ("prompt", "clip_skip", "negative_prompt")] == ["plain", *plain]


def test_where_no_socket_opens_it_asks(page: Browser) -> None:
    """Some browsers send no password along with a WebSocket, and some proxies let none through."""
    page.script(NO_SOCKETS)
    order(page, steps=20)
    wait_for(lambda: "step" in page.text("phase"))
    page.wait_until("spoken", "ready")
    assert not page.is_shown("banner")


def test_the_keyboard_is_enough(page: Browser) -> None:
    page.fill(prompt="by hand", width=64, height=64, frames=4, steps=3)
    page.script("document.getElementById('prompt').focus()")
    page.find("prompt").send_keys("\ue009\ue007")  # Ctrl+Enter
    page.wait_until("spoken", "ready")
    names = page.script(
        "return [...document.querySelectorAll('input, select, textarea, button')].filter((one) => one.offsetParent "
        "&& !one.labels?.length && !one.getAttribute('aria-label') && !one.getAttribute('aria-labelledby') "
        "&& !one.textContent.trim()).map((one) => one.outerHTML)"
    )
    assert names == []


def test_one_press_orders_one_video_however_long_it_lasts(page: Browser) -> None:
    page.fill(prompt="once", width=64, height=64, frames=4, steps=3)
    page.script(HELD_KEYS)
    page.wait_until("spoken", "ready")
    assert page.script("return document.querySelectorAll('#history .card').length") == 1


def test_an_error_does_not_take_a_fields_help_away(page: Browser) -> None:
    described = "return document.getElementById('prompt').getAttribute('aria-describedby')"
    page.set_value("prompt", "x" * 4001)
    page.find("generate").click()
    wait_for(lambda: page.script(described) == "prompt-help prompt-error")
    page.set_value("prompt", "x")
    assert page.script(described) == "prompt-help"
    assert [line for line in page.complaints() if "422" not in line] == []


def test_none_of_no_steps_is_a_share_of_the_bar(page: Browser) -> None:
    """A start image that is to stay as it is takes no steps; a bar without a number throws."""
    run = {"state": "running", "phase": "step", "step": 0, "total_steps": 0}
    asked = "import(new URL('page/stage.js', document.baseURI)).then((stage) => stage.progressOf(arguments[0]))"
    assert page.script(f"return {asked}", run) == ["Drawing: step 0 of 0", 0.9]


def test_a_socket_that_has_gone_silent_is_given_up(page: Browser) -> None:
    """As after a laptop's sleep: the browser itself notices nothing for many minutes."""
    page.script(SILENT_SOCKETS + TEN_TIMES_AS_FAST)
    order(page, steps=5)
    page.wait_until("spoken", "ready", 15)
    assert page.script("return window.sockets") >= 1


def test_a_node_that_hangs_is_told(page: Browser, node: Node) -> None:
    page.script(TEN_TIMES_AS_FAST)
    os.kill(node.process.pid, signal.SIGSTOP)
    try:
        page.wait_until("banner", "does not answer", 15)
    finally:
        os.kill(node.process.pid, signal.SIGCONT)
    wait_for(lambda: not page.is_shown("banner"))


def test_a_cancel_that_failed_can_be_tried_again(page: Browser) -> None:
    order(page, steps=150)
    wait_for(lambda: "step" in page.text("phase"))
    page.script(
        "const real = window.fetch; window.fetch = (url, options) => options?.method === 'DELETE' "
        "? (window.fetch = real, Promise.resolve(new Response('', { status: 503 }))) : real(url, options)"
    )
    page.find("cancel").click()
    wait_for(lambda: page.find("cancel").is_enabled())
    page.find("cancel").click()
    page.wait_until("spoken", "Cancelled", 5)


def test_history_survives_a_reload_and_forgets_nothing_by_itself(page: Browser, proxy: Proxy, node: Node) -> None:
    order(page, prompt="first", steps=3)
    page.wait_until("spoken", "ready")
    order(page, prompt="second", steps=150)
    wait_for(lambda: "step" in page.text("phase"))
    page.open(proxy.url)
    wait_for(lambda: page.is_shown("progress"))
    assert page.text("history").index("second") < page.text("history").index("first")
    first = page.script("return JSON.parse(localStorage.getItem('animatediff.runs'))[1].id")
    node.client.delete(f"/local/runs/{first}")
    page.find("cancel").click()
    page.wait_until("spoken", "Cancelled")
    page.open(proxy.url)
    wait_for(lambda: "no longer there" in page.text("history"))
    page.script("document.querySelectorAll('#history .card')[1].click()")
    page.wait_until("run-error", "No node that answers has this run")
    asked: list[str] = []
    wait_for(lambda: asked.extend(page.complaints()) or asked)  # type: ignore[func-returns-value]
    assert [first in said and "404" in said for said in asked] == [True], "it was looked for elsewhere, once"
    page.script("localStorage.setItem('animatediff.runs', '{broken')")
    page.open(proxy.url)
    wait_for(lambda: page.is_shown("history-empty"))


def test_what_another_node_makes_is_found_after_a_reload(one: Browser, tmp_path: Path) -> None:
    """The node that this browser was at drains: the gateway sends it to another one."""
    with ExitStack() as stack:
        before, after = (
            Node(tmp_path / name, APPLIANCE_SYNTHETIC_STEP_SECONDS=str(STEP_SECONDS)) for name in ("before", "after")
        )
        for node in (before, after):
            stack.callback(node.close)
            node.wait("ok")
        proxy = Proxy(before.port, TOKEN)
        stack.callback(proxy.close)
        one.open(proxy.url)
        wait_for(lambda: one.value("model"))
        order(one, prompt="made", steps=3)
        one.wait_until("spoken", "ready")
        order(one, prompt="in the making", steps=80)
        wait_for(lambda: "step" in one.text("phase"))
        proxy.node_port, proxy.made_at_port = after.port, before.port
        one.open(proxy.url)
        wait_for(lambda: "no longer" not in one.text("history"))
        one.script("document.querySelectorAll('#history .card')[1].click()")
        wait_for(lambda: one.script(PLAYS)[0] >= 3)
        one.script("document.querySelectorAll('#history .card')[0].click()")
        wait_for(lambda: one.is_shown("progress"))
        one.wait_until("spoken", "ready", 30)
        one.complaints()


def test_a_dying_engine_is_explained(page: Browser) -> None:
    order(page, prompt="CRASH")
    page.wait_until("run-error", "The node ran out of memory")
    order(page, prompt="after it", steps=3)
    page.wait_until("spoken", "ready")


def test_node_facts_themes_and_documentation(page: Browser, proxy: Proxy) -> None:
    page.find("facts-button").click()
    wait_for(lambda: page.script("return document.getElementById('fact-engine')?.textContent") == "synthetic")
    assert len(page.text("fact-fingerprint")) == 64
    colours = set()
    for _ in range(3):
        page.find("theme").click()
        colours.add(page.script("return getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2
    page.open(f"{proxy.url}docs")
    assert "sdapi/v1/txt2img" in page.driver.page_source
    assert page.script("return getComputedStyle(document.querySelector('main')).borderRadius") != "0px"


def test_it_fits_a_phone(page: Browser, proxy: Proxy) -> None:
    try:
        page.driver.set_window_size(500, 800)
        page.script("document.body.style.width = '360px'")
        for address in (proxy.url, f"{proxy.url}docs"):
            page.open(address)
            page.driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
            )
            assert page.script("return document.documentElement.scrollWidth") <= 360
        page.open(proxy.url)
        wait_for(lambda: page.value("model"))
        page.click("#facts-button, #form summary")
        page.set_value("lora-choice", "watercolour")
        page.click("#lora-add")
        order(page, prompt="w" * 300, width=7)
        page.wait_until("width-error", "64 to 1024")
        order(page, prompt="w" * 300, steps=2)
        page.wait_until("spoken", "ready")
        assert page.script("return document.documentElement.scrollWidth") <= 360
        assert [line for line in page.complaints() if "422" not in line] == []
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.set_window_size(1280, 900)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "api_auth").write_text("ada:pw\n")
    node = Node(tmp_path, APPLIANCE_SYNTHETIC_STEP_SECONDS=str(STEP_SECONDS))
    try:
        node.wait("ok")
        yield node
    finally:
        node.close()


def test_a_node_of_its_own_users_without_a_gateway(one: Browser, guarded: Node) -> None:
    one.complaints()
    one.open(f"http://ada:pw@127.0.0.1:{guarded.port}/")
    wait_for(lambda: one.value("model"))
    order(one, steps=25)
    wait_for(lambda: one.is_shown("preview"))  # previews come by the socket alone
    one.wait_until("spoken", "ready")
    wait_for(lambda: one.script(PLAYS)[1] > 0)
    assert one.complaints() == []
    one.open(one.script("return document.querySelector('#player video').src"))
    wait_for(lambda: one.script("return document.querySelector('video').readyState") >= 3)
    assert one.complaints() == []


@pytest.fixture
def restarted(tmp_path: Path) -> Iterator[Callable[[int | None], Node]]:
    with ExitStack() as stack:

        def start(port: int | None) -> Node:
            more = {} if port is None else {"APPLIANCE_LISTEN": f"127.0.0.1:{port}"}
            started = Node(tmp_path / f"node-{port}", APPLIANCE_SYNTHETIC_STEP_SECONDS="0.1", **more)
            stack.callback(started.close)
            return started

        yield start


def test_it_outlives_a_restart_of_the_node(
    one: Browser, restarted: Callable[[int | None], Node], tmp_path: Path
) -> None:
    node = restarted(None)
    node.wait("ok")
    proxy = Proxy(node.port, TOKEN)
    try:
        one.open(proxy.url)
        wait_for(lambda: one.value("model"))
        order(one, steps=150)
        wait_for(lambda: "step" in one.text("phase"))
        one.script("window.sameDocument = true")
        node.process.kill()
        node.process.wait()
        one.wait_until("banner", "Trying again", 10)
        again = restarted(node.port)
        wait_for(lambda: (answer := again_ping(node)) is not None and answer == 200)
        one.wait_until("run-error", "No node that answers has this run", 20)
        wait_for(lambda: not one.is_shown("banner"), 20)
        order(one, prompt="after the restart", steps=3)
        one.wait_until("spoken", "ready")
        assert one.script("return window.sameDocument")
        assert again.process.poll() is None
    finally:
        proxy.close()
        one.complaints()  # of a node that was not there


def again_ping(node: Node) -> int | None:
    answer = node.ping()  # the new one listens where the old one did
    return None if answer is None else answer.status_code


def test_the_policy_holds(page: Browser) -> None:
    """What no page of ours does, a mistake might: the browser must refuse it."""
    page.script(
        "const s = document.createElement('script'); s.textContent = 'window.broken = 1'; document.body.append(s)"
    )
    page.script("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.broken = 1\">')")
    time.sleep(0.3)
    assert page.script("return window.broken") is None
    assert any("Content Security Policy" in line for line in page.complaints())


def test_without_chromium_ci_fails_and_others_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="chromium"):
        require_chromium()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="chromium"):
        require_chromium()
