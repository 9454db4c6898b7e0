"""What a video can start from and be steered by, with the real engine and tiny models in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, ControlNetModel, DDIMScheduler, SparseControlNetModel
from diffusers.pipelines.free_init_utils import FreeInitMixin
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tests.integration.webui_engine import SMALL, Watcher, make, small, tiny_engine
from tests.integration.webui_media import clip, image, pixels
from tests.integration.webui_modes import CLIP, CONTROL, EDGES, FIRST, LAST, MODES, SPARSE
from webui import checkpoint
from webui.engine.base import EngineError, Frames, Snapshot, StoppedError
from webui.engine.conditions import encoded, fading
from webui.engine.decode import decode
from webui.engine.denoise import Denoiser
from webui.engine.diffusers import DiffusersEngine
from webui.engine.freeinit import low_pass
from webui.engine.guidance import Guidance
from webui.engine.text import TextReader, embeddings, length_warnings
from webui.prompt import key_prompts
from webui.request import FreeInit, MemorySettings

LONG = pytest.mark.long
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers, about numpy 2


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiffusersEngine]:
    threads = torch.get_num_threads()
    yield tiny_engine(tmp_path_factory.mktemp("engine"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain(engine: DiffusersEngine) -> Frames:
    return make(engine)


def after_the_autoencoder(engine: DiffusersEngine, picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What encoding and decoding alone make of it."""
    with torch.inference_mode():
        latents = encoded(engine._pipeline, torch.from_numpy(picture).permute(2, 0, 1)[None])
        return decode(engine._pipeline.vae, latents.transpose(0, 1)[None], Watcher(), 1).frames[0]


def is_as(one: Frames, other: Frames) -> bool:
    """But for rounding, which depends on how many pictures are decoded at once."""
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= 1


def distance(one: Frames, other: Frames) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


# --- from noise -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [7.5, pytest.param(1, marks=LONG)])
def test_the_loop_makes_what_diffusers_own_pipeline_makes(engine: DiffusersEngine, scale: float) -> None:
    ours = engine._pipeline
    theirs = AnimateDiffPipeline(
        vae=ours.vae,
        text_encoder=ours.text_encoder,
        tokenizer=ours.tokenizer,
        unet=ours.unet,
        motion_adapter=None,
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1),
    )
    theirs.set_progress_bar_config(disable=True)
    asked = {"prompt": "a red circle", "negative_prompt": "blurry", "width": 64, "height": 64}
    with torch.inference_mode():
        latents = theirs(
            **asked,
            num_frames=6,
            num_inference_steps=4,
            guidance_scale=scale,
            generator=torch.Generator("cpu").manual_seed(7),
            output_type="latent",
        ).frames
        expected = decode(ours.vae, latents, Watcher(), 4).frames
    assert (make(engine, cfg_scale=scale, negative_prompt="blurry") == expected).all()


def test_equal_seeds_are_equal_frames_whatever_ran_in_between(engine: DiffusersEngine, plain: Frames) -> None:
    make(engine, init_image=FIRST, controlnets=[CONTROL], free_init={"iterations": 2}, closed_loop=True)
    assert (make(engine) == plain).all()
    assert (make(engine, seed=8) != plain).any()


# --- from pictures and clips ----------------------------------------------------------------------------------------


def test_without_strength_a_picture_passes_through(engine: DiffusersEngine) -> None:
    watcher = Watcher()
    frames = make(engine, watcher, init_image=FIRST, denoising_strength=0)
    assert watcher.steps == []
    assert is_as(frames[0], after_the_autoencoder(engine, pixels(1)))
    still = make(engine, init_image=FIRST, denoising_strength=0, latent_power=0.1, latent_scale=128)
    assert distance(still[5], frames[0]) < distance(frames[5], frames[0]), "a greater scale fades more slowly"


def test_a_last_frame_is_where_it_ends(engine: DiffusersEngine) -> None:
    frames = make(engine, last_frame=image(pixels(2)), denoising_strength=0)
    assert is_as(frames[-1], after_the_autoencoder(engine, pixels(2)))
    both = make(engine, init_image=FIRST, last_frame=LAST, denoising_strength=0, latent_scale=2, latent_scale_last=2)
    assert is_as(both[0], after_the_autoencoder(engine, pixels(1)))
    assert distance(both[-1], frames[-1]) < distance(both[-1], both[0])


@pytest.mark.parametrize("kind", ["mp4", *(pytest.param(kind, marks=LONG) for kind in ("gif", "webm"))])
def test_without_strength_a_clip_passes_through(engine: DiffusersEngine, kind: str) -> None:
    pictures = [pixels(seed) for seed in range(6)]
    frames = make(engine, init_video=clip(pictures, kind), denoising_strength=0)
    expected = [after_the_autoencoder(engine, picture) for picture in pictures]
    nearest = [min(range(6), key=lambda at: distance(frame, expected[at])) for frame in frames]
    assert nearest == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("strength", "steps"), [(0.1, 1), pytest.param(0.5, 2, marks=LONG), (0.75, 3), pytest.param(1, 4, marks=LONG)]
)
def test_strength_leaves_out_the_first_steps(engine: DiffusersEngine, strength: float, steps: int) -> None:
    watcher = Watcher()
    made = make(engine, watcher, init_video=CLIP, denoising_strength=strength)
    assert watcher.steps == list(range(1, steps + 1))
    assert small(init_video=CLIP, denoising_strength=strength).total_steps == steps
    assert (made == make(engine, init_video=CLIP, denoising_strength=strength)).all()


def test_encoding_a_clip_is_told_and_can_be_stopped(engine: DiffusersEngine) -> None:
    watcher = Watcher()
    make(engine, watcher, init_video=CLIP, denoising_strength=0.25)
    assert watcher.phases[:5] == [("load", 0, 0), ("step", 0, 0), ("load", 1, 2), ("load", 2, 2), ("step", 0, 0)]

    class Impatient(Watcher):
        def phase(self, name: str, part: int = 0, parts: int = 0) -> None:
            super().phase(name, part, parts)
            if part:
                raise StoppedError

    impatient = Impatient()
    with pytest.raises(StoppedError):
        make(engine, impatient, init_video=CLIP)
    assert impatient.phases[-1] == ("load", 1, 2)


@LONG
def test_less_strength_stays_closer_to_the_clip(engine: DiffusersEngine) -> None:
    start = make(engine, init_video=CLIP, denoising_strength=0)
    weak, strong = (make(engine, init_video=CLIP, denoising_strength=strength, steps=10) for strength in (0.1, 1))
    assert distance(weak, start) < distance(strong, start)


def test_what_only_ends_as_a_picture_should_is_told_as_the_input_s_fault(engine: DiffusersEngine) -> None:
    request = replace(small(), init_image=FIRST[: len(FIRST) // 2 // 4 * 4])
    with pytest.raises(EngineError) as raised:
        engine.generate(request, Watcher(), MemorySettings())
    assert raised.value.reason == "INVALID_INPUT"


@pytest.mark.parametrize(
    ("power", "scale", "expected"),
    [
        (1, 32, [1, 31 / 32, 30 / 32, 29 / 32]),
        (1, 2, [1, 0.5, 0, 0]),
        (2, 8, [1, 7 / 8, 1 / 2, 0]),
        (0.5, 4, [1, 0.75, 1 - 2**0.5 / 4, 1 - 3**0.5 / 4]),
        (10, 1, [1, 0, 0, 0]),
    ],
)
def test_a_first_picture_fades_as_upstream(power: float, scale: float, expected: list[float]) -> None:
    assert fading(4, power, scale).tolist() == pytest.approx(expected)


# --- text -----------------------------------------------------------------------------------------------------------


def test_travel_is_exact_at_key_frames_and_between_them_in_between(engine: DiffusersEngine) -> None:
    request = small(prompt="head\n1: a red circle\n5: a blue square\ntail", frames=6)
    one, other = (
        embeddings(engine._pipeline, small(prompt=f"head, {text}, tail"), guided=False)[0]
        for text in ("a red circle", "a blue square")
    )
    told = embeddings(engine._pipeline, request, guided=False)
    assert torch.equal(told[0], one)
    assert torch.equal(told[1], one)
    assert torch.equal(told[5], other)
    assert torch.allclose(told[3], (one + other) / 2, atol=1e-6)
    round_ = embeddings(engine._pipeline, replace(request, closed_loop=True), guided=False)
    assert torch.allclose(round_[0], (one + other) / 2, atol=1e-6), "from frame 5 back to frame 1 by way of frame 0"


def test_travel_changes_the_frames_and_to_the_same_place_nothing(engine: DiffusersEngine, plain: Frames) -> None:
    assert (make(engine, prompt="0: a red circle\n3: a red circle") == plain).all()
    assert (make(engine, prompt="0: a red circle\n3: a white star over a sea") != plain).any()


def test_weights_count_and_one_is_none(engine: DiffusersEngine, plain: Frames) -> None:
    assert (make(engine, prompt="a red (circle:1.0)") == make(engine, prompt="a red circle")).all()
    assert (make(engine, prompt="a red (circle:1.5)") != plain).any()
    assert (make(engine, prompt="a red circle") == plain).all()


def test_a_long_prompt_is_read_to_its_end_beside_a_short_one(engine: DiffusersEngine) -> None:
    long = "circle " * 90
    whole = make(engine, prompt=long + "white star", negative_prompt="blurry")
    assert (whole != make(engine, prompt=long + "blue square", negative_prompt="blurry")).any()
    chunks = len(TextReader(engine._pipeline).chunks(long))
    told = embeddings(engine._pipeline, small(prompt="a cat", negative_prompt=long), guided=True)
    assert chunks > 1
    assert told.shape == (12, chunks * 77, 32)
    assert length_warnings(engine._pipeline, small(prompt=long)) == []
    assert length_warnings(engine._pipeline, small(prompt="a " * 1900)) == [
        "prompt is too long: its last 1300 tokens were not read; at most 8 x 75 are"
    ]


def test_the_words_that_all_key_frames_share_are_read_once(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = TextReader._encode

    def count(reader: TextReader, tokens: torch.Tensor) -> torch.Tensor:
        read.append(tokens.shape[1])
        return real(reader, tokens)

    monkeypatch.setattr(TextReader, "_encode", count)
    told: list[tuple[int, int]] = []
    head = "a quiet sea falls from the night sky over tall grass, " * 4
    prompt = head + "".join(f"\n{frame}: {'red' if frame % 2 else 'blue'}" for frame in range(6))
    reader = TextReader(engine._pipeline)
    chunks = [reader.chunks(text) for text in key_prompts(prompt).values()]
    embeddings(engine._pipeline, small(prompt=prompt), True, lambda done, count: told.append((done, count)))
    assert min(map(len, chunks)) > 1
    assert len(read) == len({tuple(chunk) for each in [*chunks, [[]]] for chunk in each}) < len(chunks)
    assert told == [(done, 6) for done in range(1, 7)]


def test_break_begins_a_chunk(engine: DiffusersEngine) -> None:
    reader = TextReader(engine._pipeline)
    assert [len(chunk) for chunk in reader.chunks("a cat BREAK a dog BREAK")] == [
        len(reader.chunks("a cat")[0]),
        len(reader.chunks("a dog")[0]),
    ]


def test_clip_skip_takes_an_earlier_layer_that_there_is(engine: DiffusersEngine, plain: Frames) -> None:
    assert (make(engine, clip_skip=2) != plain).any()
    with pytest.raises(EngineError) as raised:
        make(engine, clip_skip=3)
    assert raised.value.reason == "INVALID_INPUT"


# --- FreeInit, windows, guidance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["butterworth", "gaussian", "ideal"])
def test_the_filter_is_that_of_the_paper(kind: str) -> None:
    settings = FreeInit(filter=kind, spatial_stop_frequency=0.3, temporal_stop_frequency=0.2)
    theirs = FreeInitMixin()._get_free_init_freq_filter((1, 1, 5, 6, 4), "cpu", kind, 4, 0.3, 0.2)[0, 0]
    assert torch.allclose(low_pass(settings, (5, 6, 4)), theirs, atol=1e-6)


def test_free_init_runs_again_and_tells_all_steps(engine: DiffusersEngine, plain: Frames) -> None:
    watcher = Watcher()
    again = make(engine, watcher, free_init={"iterations": 3})
    assert watcher.steps == list(range(1, 13))
    assert (again != plain).any()
    assert (make(engine, free_init={"iterations": 1}) == plain).all()


@pytest.mark.parametrize(
    ("fields", "turn"),
    [
        ({}, 8),
        pytest.param({"context_batch_size": 8, "context_overlap": 4}, 4, marks=LONG),
        ({"context_batch_size": 8, "context_overlap": 4, "context_stride": 2}, 8),
    ],
    ids=str,
)
def test_a_closed_loop_has_no_seam(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], turn: int
) -> None:
    """It may begin at any of its windows: noise that is rotated becomes a clip that is rotated, so its last frame and
    its first are neighbours like any others. An open clip has a beginning and an end."""
    fresh = Denoiser._fresh_noise

    def latents(closed_loop: bool, turn: int) -> NDArray[Any]:
        monkeypatch.setattr(Denoiser, "_fresh_noise", lambda *asked: fresh(*asked).roll(turn, 2))
        watcher = Watcher()
        make(engine, watcher, frames=16, steps=2, closed_loop=closed_loop, **fields)
        return np.roll(watcher.snapshots[2].tensors["latents"], -turn, 2)

    assert np.allclose(latents(True, 0), latents(True, turn), atol=1e-3)
    assert not np.allclose(latents(False, 0), latents(False, turn), atol=0.1)


def test_stride_lets_frames_far_apart_meet(engine: DiffusersEngine) -> None:
    fields: dict[str, Any] = {"frames": 6, "context_batch_size": 3, "steps": 2}
    near, far = make(engine, **fields), make(engine, **fields, context_stride=2)
    assert (near != far).any()
    assert (make(engine, **fields, context_stride=8) == far).all(), "the clip is too short for larger steps"


@LONG
def test_compiled_it_makes_the_same_and_windows_compile_nothing(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[dict[str, Any]] = [{}, {"frames": 12, "context_batch_size": 6}, {"controlnets": [CONTROL]}]
    expected = [make(engine, steps=2, **way) for way in ways]
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    unet = engine._pipeline.unet
    monkeypatch.setattr(unet, "_compiled", None)
    unet.compile(backend=backend, dynamic=False)
    assert is_as(make(engine, steps=2), expected[0])
    once = len(graphs)
    assert once < 20
    assert (make(engine, steps=2, **ways[1]) == expected[1]).all()
    assert len(graphs) == once
    assert is_as(make(engine, steps=2, **ways[2]), expected[2])


def test_split_guidance_differs_by_rounding_alone(engine: DiffusersEngine, plain: Frames) -> None:
    request = small()
    with engine._pipeline_for(request) as ready, torch.inference_mode():
        pipeline = ready.pipeline
        pipeline.scheduler.set_timesteps(4)
        texts = embeddings(pipeline, request, guided=True)
        latents = torch.randn(1, 4, 6, 8, 8, generator=torch.Generator().manual_seed(1))
        together, split = (
            Guidance(7.5, split=split).predict(pipeline, latents, pipeline.scheduler.timesteps[0], texts)
            for split in (False, True)
        )
    assert torch.allclose(together, split, atol=1e-4)


def test_short_memory_splits_guidance_at_once_and_goes_on(engine: DiffusersEngine) -> None:
    request, guidance = small(), Guidance(7.5)
    with engine._pipeline_for(request) as ready, torch.inference_mode():
        unet, asked = ready.pipeline.unet, []

        class Narrow:
            def __call__(self, sample: torch.Tensor, *args: Any, **options: Any) -> Any:
                asked.append(len(sample))
                if len(sample) > 1:
                    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
                return unet(sample, *args, **options)

        ready.pipeline.scheduler.set_timesteps(4)
        texts = embeddings(ready.pipeline, request, guided=True)
        narrow = type("P", (), {"unet": Narrow(), "scheduler": ready.pipeline.scheduler})()
        for timestep in ready.pipeline.scheduler.timesteps[:2]:
            guidance.predict(narrow, torch.zeros(1, 4, 6, 8, 8), timestep, texts)
    assert asked == [2, 1, 1, 1, 1], "tried together once, then never again"


class Short:
    """An autoencoder's method on a GPU that has memory for `limit` pictures at once, or `tiles` of one."""

    def __init__(self, vae: Any, method: str, limit: int, tiles: bool = True) -> None:
        self._vae, self._real, self._limit, self._tiles = vae, getattr(vae, method), limit, tiles
        self.asked: list[tuple[int, bool]] = []

    def __call__(self, pictures: torch.Tensor, *args: Any, **options: Any) -> Any:
        self.asked.append((len(pictures), self._vae.use_tiling))
        if len(pictures) > self._limit and not (self._tiles and self._vae.use_tiling and len(pictures) == 1):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return self._real(pictures, *args, **options)


@pytest.mark.parametrize(
    ("limit", "asked"),
    [
        (4, [(4, False), (2, False)]),
        (3, [(4, False), *[(1, False)] * 6]),
        (0, [(4, False), (1, False), *[(1, True)] * 6]),
    ],
)
def test_short_memory_decodes_fewer_at_once_and_at_last_tiles(
    engine: DiffusersEngine, plain: Frames, monkeypatch: pytest.MonkeyPatch, limit: int, asked: list[tuple[int, bool]]
) -> None:
    vae = engine._pipeline.vae
    before = (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size)
    short = Short(vae, "decode", limit)
    monkeypatch.setattr(vae, "decode", short)
    watcher = Watcher()
    frames = make(engine, watcher)
    assert is_as(frames, plain) or (1, True) in asked, "tiles change the picture a little"
    assert short.asked == asked
    assert (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size) == before
    ready = [done for done, _ in watcher.ready]
    assert ready[-1] == 6
    assert [part for name, part, _ in watcher.phases if name == "decode" and part] == ready
    for done, seen in watcher.ready:
        assert seen == frames[:done].tobytes(), "what was told to be ready stayed as it was"


def test_without_any_memory_left_to_decode_it_is_told_and_the_next_is_served(
    engine: DiffusersEngine, plain: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._pipeline.vae, "decode", Short(engine._pipeline.vae, "decode", 0, tiles=False))
    with pytest.raises(EngineError) as raised:
        make(engine)
    assert raised.value.reason == "OOM"
    monkeypatch.undo()
    assert (make(engine) == plain).all()


def test_short_memory_encodes_one_picture_at_a_time(engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {"init_video": CLIP, "denoising_strength": 0}
    expected = make(engine, **fields)
    short = Short(engine._pipeline.vae, "encode", 1)
    monkeypatch.setattr(engine._pipeline.vae, "encode", short)
    assert is_as(make(engine, **fields), expected)
    assert [count for count, _ in short.asked] == [4, 1, 1, 1, 1, 2, 1, 1]


def test_offloading_lends_each_model_to_the_device_and_changes_nothing(
    engine: DiffusersEngine, plain: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offloading wants a GPU; to move everything from the CPU to the CPU shows the same hooks come and go."""
    fields: dict[str, Any] = {"init_image": FIRST, "clip_skip": 2, "sparse_control": SPARSE, "context_batch_size": 4}
    expected, hooked = make(engine, **fields), []

    def offload(memory: MemorySettings) -> None:
        engine._pipeline.enable_model_cpu_offload(device="cpu")
        monkeypatch.setattr(engine, "_offloading", True)

    monkeypatch.setattr(engine, "_offload", offload)
    watcher = Watcher(on_step=lambda _: hooked.append(hasattr(engine._pipeline.unet, "_hf_hook")))
    assert (make(engine, watcher, **fields) == expected).all()
    assert hooked == [True] * 3
    monkeypatch.undo()
    assert (make(engine) == plain).all()
    assert not hasattr(engine._pipeline.unet, "_hf_hook")


# --- ControlNet and SparseCtrl --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"controlnets": [CONTROL | {"weight": 0}]},
        {"controlnets": [CONTROL | {"start": 1}]},
        {"sparse_control": SPARSE | {"weight": 0}},
    ],
    ids=str,
)
def test_a_control_that_never_counts_is_none(engine: DiffusersEngine, plain: Frames, fields: dict[str, Any]) -> None:
    assert (make(engine, **fields) == plain).all()


def test_controls_count_by_picture_weight_and_time(engine: DiffusersEngine) -> None:
    ways: list[dict[str, Any]] = [
        {"controlnets": [CONTROL]},
        {"controlnets": [CONTROL | {"weight": 0.5}]},
        {"controlnets": [CONTROL | {"end": 0.5}]},
        {"controlnets": [CONTROL | {"image": EDGES[1]}]},
        {"controlnets": [{"model": "tiny", "images": EDGES}]},
        {"controlnets": [CONTROL, CONTROL]},
        {"sparse_control": SPARSE},
        {"sparse_control": SPARSE, "controlnets": [CONTROL]},
        {},
    ]
    made = [make(engine, steps=2, **way) for way in ways]
    assert len({frames.tobytes() for frames in made}) == len(made)


def test_two_controls_of_one_network_share_it(engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = engine._models.control
    monkeypatch.setattr(engine._models, "control", lambda name: made.append(name) or real(name))
    make(engine, controlnets=[CONTROL, CONTROL | {"image": EDGES[1]}], sparse_control=SPARSE, steps=1)
    assert made == ["tiny", "sparse"]


def test_one_picture_is_the_same_as_it_for_every_frame(engine: DiffusersEngine) -> None:
    one = make(engine, controlnets=[CONTROL])
    assert (make(engine, controlnets=[{"model": "tiny", "images": [EDGES[0]] * 6}]) == one).all()
    assert (make(engine, controlnets=[{"model": "tiny", "images": [EDGES[0]]}]) == one).all()


def test_a_window_sees_the_pictures_of_its_own_frames(engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[torch.Tensor] = []
    masks: list[list[float]] = []
    plain, sparse = ControlNetModel.forward, SparseControlNetModel.forward

    def look(network: Any, *args: Any, **options: Any) -> Any:
        shown.append(options["controlnet_cond"])
        return plain(network, *args, **options)

    def look_sparsely(network: Any, *args: Any, **options: Any) -> Any:
        masks.append(options["conditioning_mask"][0, 0, :, 0, 0].tolist())
        return sparse(network, *args, **options)

    monkeypatch.setattr(ControlNetModel, "forward", look)
    monkeypatch.setattr(SparseControlNetModel, "forward", look_sparsely)
    monkeypatch.setattr("webui.engine.diffusers.windows", lambda *_: [(0, 1, 2), (5, 4, 3)])
    make(engine, controlnets=[{"model": "tiny", "images": EDGES}], sparse_control=SPARSE, steps=1)
    sent = torch.stack([torch.from_numpy(pixels(seed)).permute(2, 0, 1) / 255 for seed in range(3, 9)])
    for seen, frames in zip(shown, [[0, 1, 2], [5, 4, 3]], strict=True):
        assert torch.allclose(seen, torch.cat([sent[frames]] * 2)), "once for each of the two prompts"
    assert masks == [[1, 0, 0], [1, 0, 0]], "frame 0, and frame 5"


@pytest.mark.parametrize(
    "fields",
    [{"controlnets": [CONTROL | {"model": "sparse"}]}, {"sparse_control": SPARSE | {"model": "tiny"}}],
    ids=["sparse as plain", "plain as sparse"],
)
def test_a_network_of_the_other_kind_is_the_input_s_fault(engine: DiffusersEngine, fields: dict[str, Any]) -> None:
    with pytest.raises(EngineError) as raised:
        make(engine, **fields)
    assert raised.value.reason == "INVALID_INPUT"


def test_more_frames_than_a_sparse_network_knows_are_the_input_s_fault(engine: DiffusersEngine) -> None:
    with pytest.raises(EngineError, match="at most 32 frames together") as raised:
        make(engine, frames=33, steps=1, sparse_control=SPARSE)
    assert raised.value.reason == "INVALID_INPUT"
    make(engine, frames=33, steps=1, sparse_control=SPARSE, context_batch_size=32)


def test_a_single_file_controls_as_its_folder_does(engine: DiffusersEngine) -> None:
    folder = Path(engine._settings.models_dir, "controlnet")
    state = load_file(folder / "tiny" / "diffusion_pytorch_model.safetensors")
    save_file(state, folder / "alone.safetensors")
    config = json.loads((folder / "tiny" / "config.json").read_text())
    (folder / "alone.json").write_text(json.dumps({"controlnet": config}))
    assert (make(engine, controlnets=[CONTROL | {"model": "alone"}]) == make(engine, controlnets=[CONTROL])).all()


def test_a_file_that_is_no_control_network_is_told(engine: DiffusersEngine) -> None:
    save_file({"weight": torch.zeros(1)}, Path(engine._settings.models_dir, "controlnet", "other.safetensors"))
    with pytest.raises(EngineError, match="is no ControlNet") as raised:
        make(engine, controlnets=[CONTROL | {"model": "other"}])
    assert raised.value.reason == "MODEL_LOAD_FAIL"


# --- stopping and going on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_it_goes_on_from_any_step_to_the_same_frames(engine: DiffusersEngine, mode: str, tmp_path: Path) -> None:
    fields, watcher = MODES[mode], Watcher()
    whole = make(engine, watcher, **fields)
    assert whole.std() > 5, "not one flat colour"
    request = small(**fields)
    assert watcher.steps == list(range(1, request.total_steps + 1))
    identity = checkpoint.Identity("f", checkpoint.request_hash(request, MemorySettings()))
    count = len(watcher.steps)
    for step in sorted({1, (count + 1) // 2, count}):
        assert checkpoint.write(tmp_path, 1, watcher.snapshots[step], identity)
        kept = checkpoint.read(tmp_path / f"1-{step}.safetensors", identity, request.total_steps)
        assert engine.accepts(kept, request)
        rest = Watcher()
        assert (make(engine, rest, kept, **fields) == whole).all(), f"from step {step}"
        assert rest.steps == list(range(step + 1, request.total_steps + 1))


@pytest.mark.parametrize("missing", ["noise", "latents", "random"])
def test_half_a_snapshot_is_none(engine: DiffusersEngine, missing: str) -> None:
    fields = MODES["free init"]
    watcher = Watcher()
    make(engine, watcher, **fields)
    whole = watcher.snapshots[2]
    assert engine.accepts(whole, small(**fields))
    part = Snapshot(2, 7, {name: tensor for name, tensor in whole.tensors.items() if name != missing})
    assert not engine.accepts(part, small(**fields))


@pytest.mark.parametrize("mode", ["free init", "closed windows", "controls"])
def test_it_stops_within_a_step_and_serves_the_next(engine: DiffusersEngine, plain: Frames, mode: str) -> None:
    watcher = Watcher(stop_after=2)
    with pytest.raises(StoppedError):
        make(engine, watcher, **MODES[mode])
    assert watcher.steps == [1, 2]
    assert (make(engine) == plain).all()


class ImpatientIn(Watcher):
    """Stops at the second sign of life of a phase that says how far it is."""

    def __init__(self, phase: str) -> None:
        super().__init__()
        self._phase = phase

    def phase(self, name: str, part: int = 0, parts: int = 0) -> None:
        super().phase(name, part, parts)
        if (name, part) == (self._phase, 2):
            raise StoppedError


@pytest.mark.parametrize(
    ("phase", "fields"),
    [
        ("load", {"controlnets": [{"model": "tiny", "images": EDGES}]}),
        ("load", {"sparse_control": SPARSE}),
        ("step", {"prompt": "0: a\n1: b\n2: c"}),
        ("step", {"context_batch_size": 3}),
    ],
    ids=["pictures", "sparse pictures", "prompts", "windows"],
)
def test_what_is_long_within_a_phase_can_be_stopped(
    engine: DiffusersEngine, plain: Frames, phase: str, fields: dict[str, Any]
) -> None:
    watcher = ImpatientIn(phase)
    with pytest.raises(StoppedError):
        make(engine, watcher, **fields)
    assert watcher.steps == []
    assert watcher.phases[-1][:2] == (phase, 2)
    assert (make(engine) == plain).all()


def test_each_field_that_makes_other_frames_makes_another_checkpoint() -> None:
    hashes = {mode: checkpoint.request_hash(small(**fields), MemorySettings()) for mode, fields in MODES.items()}
    assert len(set(hashes.values())) == len(MODES)
    for field, value in (("fps", 3), ("loop_number", 2), ("format", ["gif"])):
        assert checkpoint.request_hash(small(**{field: value}), MemorySettings()) == hashes["plain"]
    assert checkpoint.request_hash(small(init_image=LAST), MemorySettings()) != checkpoint.request_hash(
        small(init_image=FIRST), MemorySettings()
    )


# --- what is told ---------------------------------------------------------------------------------------------------


def test_previews_show_what_becomes_of_it(engine: DiffusersEngine) -> None:
    watcher = Watcher()
    make(engine, watcher, steps=6)
    pictures = [snapshot.picture() for snapshot in watcher.snapshots.values() if snapshot.picture is not None]
    assert len(pictures) == 6
    assert all(picture.shape == (8, 8, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) > 3


def test_parameters_tell_what_was_asked_but_carry_no_pictures(engine: DiffusersEngine) -> None:
    made = engine.generate(
        small(init_image=FIRST, controlnets=[CONTROL], sparse_control=SPARSE), Watcher(), MemorySettings()
    )
    engine.release()
    assert made.parameters["init_image"].startswith("sha256:")
    assert FIRST not in str(made.parameters)
    assert EDGES[0] not in str(made.parameters)
    assert made.parameters["controlnets"][0]["model"] == "tiny"
    assert "closed_loop" not in made.parameters
    assert made.parameters["prompt"] == SMALL["prompt"]
