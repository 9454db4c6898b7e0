"""A small A1111 with AnimateDiff that speaks the contract over real HTTP: the original cannot be installed in tests.

One run at a time, which blocks its caller; progress without identity; an interrupt that ends the run after its step and
answers 200 with what there is; options and scripts; out of memory in the exact form; basic auth. The frames are drawn.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

OOM = {
    "error": "OutOfMemoryError",
    "detail": "",
    "body": "",
    "errors": "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB",
}
IDLE = {"skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": 0,
        "job_timestamp": "20261124000000", "job_no": 0, "sampling_step": 0, "sampling_steps": 0}  # fmt: skip
SAMPLERS = ("DPM++ 2M", "Euler a", "Euler", "DDIM")


class ForeignA1111:
    """`plan` holds what is to happen to the next runs, one word each (the trial counts); then all is well:

    oom · cuda · still · hang (at the middle step, deaf to interrupts, until `go_on`) · crash (at the middle step) ·
    wait (as hang, but hears interrupts) · 422 · 404 · huge. `context_limit`: runs with a larger context are out of
    memory.
    """

    def __init__(self, auth: str = "") -> None:
        self.auth = auth
        self.plan: list[str] = []
        self.runs: list[dict[str, Any]] = []
        self.called: list[str] = []
        self.step_seconds = 0.01
        self.begin_seconds = 0.0
        """What a run takes to load: all the while its job_count is -1."""
        self.deaf_after_run = 0.0
        """So many seconds after a run it answers nothing but errors."""
        self._deaf_until = 0.0
        self._waiting = self.most_waiting = 0
        self.context_limit = 1000
        self.extensions = ["animatediff", "dynamic prompts"]
        self.go_on = threading.Event()
        self.frozen = threading.Event()
        self.state = dict(IDLE)
        self._one_at_a_time = threading.Lock()
        self._dead = threading.Event()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def trials(self) -> int:
        return sum(run["width"] == 64 and run["steps"] == 1 for run in self.runs)

    def start(self) -> None:
        owner = self
        self._dead = dead = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner._handle(self, dead)

            do_POST = do_GET  # noqa: N815  (the library's own name)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # whoever asked has gone away

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()

    def crash(self) -> None:
        """As kill -9: every connection breaks, new ones are refused, and what it was about is forgotten."""
        self._dead.set()
        self._server.shutdown()
        self._server.server_close()
        self.state = dict(IDLE)

    def close(self) -> None:
        self.go_on.set()
        self.frozen.clear()
        self.crash()

    def _handle(self, handler: BaseHTTPRequestHandler, dead: threading.Event) -> None:
        handler.close_connection = True
        length = int(handler.headers["Content-Length"] or 0)
        body = json.loads(handler.rfile.read(length) or b"{}")
        path = handler.path.split("?")[0]
        while self.frozen.is_set() and not dead.is_set():
            time.sleep(0.02)
        wanted = "Basic " + base64.b64encode(self.auth.encode()).decode()
        if self.auth and handler.headers["Authorization"] != wanted:
            status, answer = 401, {"detail": "Incorrect username or password"}
        elif path in ("/sdapi/v1/txt2img", "/sdapi/v1/img2img"):
            status, answer = self._queued(path, body, dead)
        else:
            status, answer = self._quick(path)
        if dead.is_set():
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        content = json.dumps(answer).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _quick(self, path: str) -> tuple[int, Any]:
        self.called.append(path)
        if time.monotonic() < self._deaf_until:
            return 500, {"detail": "busy"}
        if path == "/sdapi/v1/interrupt":
            self.state["interrupted"] = True
            return 200, {}
        state = dict(self.state)
        each, jobs = state["sampling_steps"] or 1, state["job_count"]
        progress = min(1.0, 0.01 + state["sampling_step"] / each) if jobs else 0
        answers: dict[str, Any] = {
            "/sdapi/v1/progress": {"progress": progress, "eta_relative": 0.0, "state": state, "current_image": None,
                                   "textinfo": None},
            "/sdapi/v1/options": {"sd_model_checkpoint": "good.safetensors [abc]", "sd_vae": "Automatic",
                                  "CLIP_stop_at_last_layers": 1},
            "/sdapi/v1/scripts": {"txt2img": self.extensions, "img2img": self.extensions},
            "/sdapi/v1/sd-models": [{"title": "good.safetensors [abc]", "model_name": "good", "hash": "abc",
                                     "sha256": "a" * 64, "filename": "/models/good.safetensors", "config": None},
                                    {"title": "other", "model_name": "other", "hash": None, "sha256": None,
                                     "filename": "/models/other.safetensors", "config": None}],
            "/sdapi/v1/samplers": [{"name": name, "aliases": [], "options": {}} for name in SAMPLERS],
            "/sdapi/v1/schedulers": [{"name": "karras", "label": "Karras", "aliases": None, "default_rho": 7.0,
                                      "need_inner_model": False}],
            "/sdapi/v1/loras": [{"name": "Style", "alias": "Style", "path": "/l/Style.safetensors", "metadata": {}}],
            "/sdapi/v1/unload-checkpoint": {},
        }  # fmt: skip
        return (200, answers[path]) if path in answers else (404, {"detail": "Not Found"})

    def _queued(self, path: str, body: dict[str, Any], dead: threading.Event) -> tuple[int, Any]:
        self._waiting += 1
        self.most_waiting = max(self.most_waiting, self._waiting)
        with self._one_at_a_time:
            self.runs.append({**body, "path": path})
            fault = self.plan.pop(0) if self.plan else ""
            self.state = {**IDLE, "job": "scripts_txt2img", "job_count": -1}
            try:
                dead.wait(self.begin_seconds)
                self.state["job_count"] = 1
                return self._run(body, fault, dead)
            finally:
                self._waiting -= 1
                self._deaf_until = time.monotonic() + self.deaf_after_run
                self.state |= {"job": "", "job_count": 0, "job_no": 0, "sampling_step": 0}

    def _run(self, body: dict[str, Any], fault: str, dead: threading.Event) -> tuple[int, Any]:
        arguments = body["alwayson_scripts"]["AnimateDiff"]["args"][0]
        refused: dict[str, tuple[int, Any]] = {
            "422": (422, {"error": "HTTPException", "detail": "Script 'x' not found", "body": "", "errors": ""}),
            "404": (404, {"detail": "Not Found"}),
            "cuda": (500, {**OOM, "error": "RuntimeError", "errors": "CUDA error: device-side assert triggered"}),
        }
        if fault in refused:
            return refused[fault]
        if body.get("sampler_name", "Euler") not in SAMPLERS:
            return 400, {"error": "HTTPException", "detail": "Sampler not found", "body": "", "errors": ""}
        if fault == "oom" or arguments["batch_size"] > self.context_limit:
            return 500, OOM
        self.state["sampling_steps"] = body["steps"]
        for step in range(body["steps"]):
            if not self._step(step, body["steps"], fault, dead):
                break
        count = arguments["video_length"] or arguments["batch_size"]
        frames = draw(body["width"], body["height"], count, body["seed"])
        kinds = [kind for kind in ("GIF", "MP4", "WEBP", "WEBM") if kind in arguments["format"]]
        files = [encode(kind, frames, arguments["fps"]) for kind in kinds]
        if "Frame" in arguments["format"]:
            files += [png(frame) for frame in frames]
        if fault == "still":
            files = [png(frames[0])]
        if fault == "huge":
            files = [bytes(4 << 20)]
        info = {"seed": body["seed"], "steps": body["steps"], "sd_model_name": "good", "all_prompts": [body["prompt"]]}
        images = [base64.b64encode(content).decode() for content in files]
        return 200, {"images": images, "parameters": body, "info": json.dumps(info)}

    def _step(self, step: int, steps: int, fault: str, dead: threading.Event) -> bool:
        """False: the run ends here."""
        if step == steps // 2 and fault == "crash":
            threading.Thread(target=self.crash, daemon=True).start()
            dead.wait(5)
        while step == steps // 2 and fault in ("hang", "wait") and not self.go_on.is_set() and not dead.is_set():
            if fault == "wait" and self.state["interrupted"]:
                return False
            time.sleep(0.01)
        time.sleep(self.step_seconds)
        self.state["sampling_step"] = step + 1
        return not self.state["interrupted"] and not dead.is_set()


def draw(width: int, height: int, count: int, seed: int) -> list[NDArray[np.uint8]]:
    """A bright bar that moves over a colour which the seed chooses."""
    colour = np.random.default_rng(abs(seed)).integers(0, 128, 3, dtype=np.uint8)
    frames = []
    for number in range(count):
        frame = np.full((height, width, 3), colour, np.uint8)
        at = number * (width - 8) // max(1, count)
        frame[:, at : at + 8] = 255
        frames.append(frame)
    return frames


def encode(kind: str, frames: list[NDArray[np.uint8]], fps: int) -> bytes:
    target = io.BytesIO()
    if kind in ("GIF", "WEBP"):
        first, *rest = (Image.fromarray(frame) for frame in frames)
        first.save(target, kind, save_all=True, append_images=rest, duration=1000 // fps, loop=0)
        return target.getvalue()
    codec, container = ("libx264", "mp4") if kind == "MP4" else ("libvpx-vp9", "webm")
    with av.open(target, "w", format=container) as output:
        stream = output.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    return target.getvalue()


def png(frame: NDArray[np.uint8]) -> bytes:
    target = io.BytesIO()
    Image.fromarray(frame).save(target, "PNG")
    return target.getvalue()
