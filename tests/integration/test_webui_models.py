"""Models from files of every layout, LoRAs, samplers and switching, with real though small networks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from tests.integration.webui_models import SmallModels, ldm_vae, store
from webui.engine.base import EngineError, Snapshot
from webui.engine.diffusers import DiffusersEngine, Quiet
from webui.engine.failure import to_engine_error
from webui.engine.library import Library
from webui.engine.loading import fingerprint
from webui.engine.models import Models
from webui.engine.samplers import Noise, make_scheduler
from webui.request import Lora, MemorySettings, VideoRequest
from webui.sampler_names import SAMPLERS, choose
from webui.settings import EngineSettings

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
LONG = pytest.mark.long
STEPS = 3
UNET_LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_LAYER = "encoder.layers.0.self_attn.q_proj"
MOTION_LAYER = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallModels:
    torch.set_num_threads(1)
    return SmallModels(tmp_path_factory.mktemp("small") / "models")


@pytest.fixture(scope="module")
def make_loras(small: SmallModels) -> None:
    torch.manual_seed(9)
    down, up = torch.randn(2, 32) * 0.5, torch.randn(32, 2) * 0.5
    kohya, text = (name.replace(".", "_") for name in (f"lora_unet_{UNET_LAYER}", f"lora_te_text_model_{TEXT_LAYER}"))
    old = UNET_LAYER.replace(".to_q", ".processor.to_q_lora")
    author = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor"
    new = (".lora_A.weight", ".lora_B.weight")
    for name, place, (narrow, wide) in (
        ("kohya", kohya, (".lora_down.weight", ".lora_up.weight")),
        ("peft", f"unet.{UNET_LAYER}", new),
        ("old", f"unet.{old}", (".down.weight", ".up.weight")),
        ("words", text, (".lora_down.weight", ".lora_up.weight")),
        ("pan", f"{author}.to_q_lora", (".down.weight", ".up.weight")),
        ("pan-folder/diffusion_pytorch_model", f"unet.{MOTION_LAYER}", new),
        ("foreign", "lora_unet_nothing_here", (".lora_down.weight", ".lora_up.weight")),
    ):
        alpha = {f"{place}.alpha": torch.tensor(2.0)} if name == "kohya" else {}
        store({place + narrow: down, place + wide: up, **alpha}, small.root / "lora" / f"{name}.safetensors")
    store({f"{kohya}.hada_w1_a": down}, small.root / "lora" / "loha.safetensors")
    too_wide = {f"unet.{UNET_LAYER}{new[0]}": torch.randn(2, 48), f"unet.{UNET_LAYER}{new[1]}": up}
    store(too_wide, small.root / "lora" / "wide.safetensors")


def settings_of(small: SmallModels, scratch: Path, **fields: Any) -> EngineSettings:
    defaults = {"checkpoint": "folder", "motion_module": "v3-folder"}
    return EngineSettings(kind="diffusers", models_dir=str(small.root), scratch_dir=str(scratch), **defaults | fields)


@pytest.fixture(scope="module")
def models(small: SmallModels, make_loras: None, tmp_path_factory: pytest.TempPathFactory) -> Models:
    scratch = tmp_path_factory.mktemp("scratch")
    return Models(settings_of(small, scratch), Library(small.root, scratch))


class Result:
    """Latents of a small clip, after each step too, with what a checkpoint would hold."""

    def __init__(
        self, models: Models, resume: tuple[int, Any] | None = None, steps: int = STEPS, **request: Any
    ) -> None:
        self.states: list[tuple[Any, Any, dict[str, Any]]] = []
        generator = torch.Generator().manual_seed(3)
        with models.ready(VideoRequest("a cat", **request)) as ready, torch.inference_mode():
            scheduler = ready.pipeline.scheduler
            latents = None
            if resume is not None:
                scheduler.first_step = resume[0]
                latents, random, memory = resume[1]
                generator.set_state(random)
                scheduler.remember(memory)

            def keep(pipeline: Any, index: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
                memory = {name: value.clone() for name, value in scheduler.memory().items()}
                self.states.append((values["latents"].clone(), generator.get_state(), memory))
                return values

            self.latents = ready.pipeline(
                prompt="a cat", negative_prompt="blurry", width=64, height=64, num_frames=2, num_inference_steps=steps,
                generator=generator, latents=latents, output_type="latent", callback_on_step_end=keep,
            ).frames  # fmt: skip
        self.ready = ready

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Result) and torch.equal(self.latents, other.latents)

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture(scope="module")
def plain(models: Models) -> Result:
    return Result(models)


def test_a_folder_gives_what_diffusers_own_loader_gives(models: Models, plain: Result, small: SmallModels) -> None:
    folder = small.root / "checkpoint" / "folder"
    theirs = AnimateDiffPipeline(
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        motion_adapter=MotionAdapter.from_pretrained(small.root / "motion_module" / "v3-folder"),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, steps_offset=1
        ),
    )
    for network in (theirs.unet, theirs.text_encoder):
        network.requires_grad_(False)  # PyTorch rounds some results otherwise where weights could be trained
    with torch.inference_mode():
        latents = theirs(
            prompt="a cat", negative_prompt="blurry", width=64, height=64, num_frames=2, num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(3), output_type="latent",
        ).frames  # fmt: skip
    assert torch.equal(plain.latents, latents)


@pytest.mark.parametrize(("model", "module"), [("single", "v3-folder"), ("single.safetensors", "v3"), ("folder", "v3")])
def test_a_single_file_gives_what_the_folder_gives(models: Models, plain: Result, model: str, module: str) -> None:
    assert Result(models, model=model, motion_module=module) == plain


def test_the_motion_module_counts_and_v2_is_one_too(models: Models, plain: Result) -> None:
    file, folder = Result(models, motion_module="v2"), Result(models, motion_module="v2-folder")
    assert file == folder
    assert file != plain
    assert file.ready.made_with["motion_module"] == "v2-folder" or file.ready.made_with["motion_module"] == "v2"


@pytest.mark.parametrize(
    "layout", ["authors", "folder", *(pytest.param(x, marks=LONG) for x in ("a1111", "diffusers"))]
)
def test_an_autoencoder_of_its_own(models: Models, small: SmallModels, layout: str) -> None:
    state = {name: tensor + 0.01 for name, tensor in small.vae.state_dict().items()}
    path = small.root / "vae" / f"{layout}.safetensors"
    config = json.loads(small.file.with_suffix(".json").read_text())
    if layout == "folder":
        path = small.root / "vae" / "folder" / "diffusion_pytorch_model.safetensors"
        small.vae.save_pretrained(path.parent)
        path.unlink()
    else:
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps({"vae": config["vae"]}))
    names = state if layout in ("diffusers", "folder") else ldm_vae(state)
    store(
        {name.removeprefix("first_stage_model." if layout == "authors" else ""): t for name, t in names.items()}, path
    )
    with models.ready(VideoRequest("x", vae=layout)) as ready:
        for name, tensor in ready.pipeline.vae.state_dict().items():
            assert torch.equal(tensor, state[name]), name
        assert ready.made_with["vae"] == layout
    with models.ready(VideoRequest("x")) as ready:
        assert ready.made_with["vae"] is None
        assert all(torch.equal(t, small.vae.state_dict()[name]) for name, t in ready.pipeline.vae.state_dict().items())


@pytest.mark.parametrize("name", ["kohya", "peft", "old"])
def test_every_layout_of_a_lora_is_the_same_lora(models: Models, small: SmallModels, plain: Result, name: str) -> None:
    with models.ready(VideoRequest("x", loras=[Lora(name, 0.5)])) as ready:
        assert ready.warnings == []
        weight = ready.pipeline.unet.get_submodule(UNET_LAYER).weight.clone()
        assert ready.made_with["loras"][0]["name"] == name
    before = small.unet.get_submodule(UNET_LAYER).weight
    torch.manual_seed(9)
    down, up = torch.randn(2, 32) * 0.5, torch.randn(32, 2) * 0.5
    assert torch.equal(weight, before + (up @ down) * 0.5)
    changed = Result(models, loras=[Lora(name, 0.5)])
    assert changed != plain
    assert Result(models) == plain, "bit for bit as before"


def test_loras_add_up_and_also_change_the_words(models: Models, plain: Result) -> None:
    words = Result(models, loras=[Lora("words", 1.0)])
    both = Result(models, loras=[Lora("words", 1.0), Lora("kohya", -1.5)])
    assert words != plain
    assert both != words
    assert both != Result(models, loras=[Lora("kohya", -1.5)])
    assert Result(models, loras=[Lora("kohya", 0)]) == plain
    assert Result(models) == plain


def test_a_failure_in_between_leaves_no_lora_behind(models: Models, plain: Result) -> None:
    with pytest.raises(RuntimeError, match="injected"), models.ready(VideoRequest("x", loras=[Lora("kohya", 2)])):
        raise RuntimeError("injected")
    assert Result(models) == plain


@pytest.mark.parametrize("name", ["pan", pytest.param("pan-folder", marks=LONG)])
def test_a_motion_lora_moves_v2_and_is_told_to_be_useless_with_v3(models: Models, name: str) -> None:
    v2 = Result(models, motion_module="v2")
    moved = Result(models, motion_module="v2", loras=[Lora(name, 1.0)])
    assert moved != v2
    assert Result(models, motion_module="v2") == v2
    assert moved.ready.warnings == []
    warnings = Result(models, loras=[Lora(name, 1.0)]).ready.warnings
    assert [f"LoRA {name}" in text and "v2 motion module" in text for text in warnings] == [True]


@pytest.mark.parametrize(
    ("name", "message"),
    [("foreign", "made for other models"), ("wide", "made for other models"), ("loha", "kind that is not supported")],
)
def test_a_lora_without_effect_is_told(models: Models, plain: Result, name: str, message: str) -> None:
    result = Result(models, loras=[Lora(name, 1.0)])
    assert [message in text for text in result.ready.warnings] == [True]
    assert result == plain


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_goes_on_from_every_step_bit_for_bit(models: Models, sampler: str) -> None:
    whole = Result(models, sampler=sampler)
    assert len(whole.states) == STEPS
    assert torch.isfinite(whole.latents).all()
    for step in range(1, STEPS):
        rest = Result(models, resume=(step, whole.states[step - 1]), sampler=sampler)
        assert len(rest.states) == STEPS - step
        assert rest == whole, f"step {step}"


def walk(sampler: str, schedule: str, steps: int, resume: tuple[int, Any] | None = None) -> list[tuple[Any, Any, Any]]:
    """The scheduler alone with a stand-in for the model, so that all of them can be tried."""
    scheduler = make_scheduler(choose(sampler, schedule), Noise())
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    if resume is not None:
        scheduler.first_step = resume[0]
        latents, random, memory = resume[1]
        generator.set_state(random)
        scheduler.remember(memory)
    scheduler.set_timesteps(steps, device="cpu")
    latents = latents * scheduler.init_noise_sigma
    options = {} if sampler in ("UniPC",) else {"generator": generator}
    states = []
    for time in scheduler.timesteps:
        noise = torch.tanh(scheduler.scale_model_input(latents, time)) * 0.9 + 0.01
        latents = scheduler.step(noise, time, latents, **options).prev_sample
        states.append((latents, generator.get_state(), {k: v.clone() for k, v in scheduler.memory().items()}))
    return states


@pytest.mark.parametrize(
    ("sampler", "schedule"), [(n, s) for n, sampler in SAMPLERS.items() for s in sampler.schedules]
)
def test_every_schedule_has_as_many_steps_as_asked_for_and_goes_on(sampler: str, schedule: str) -> None:
    for steps in (1, 2, 3, 8):
        whole = walk(sampler, schedule, steps)
        assert len(whole) == steps
        assert torch.isfinite(whole[-1][0]).all(), steps
        for step in range(1, steps):
            rest = walk(sampler, schedule, steps, (step, whole[step - 1]))
            assert torch.equal(rest[-1][0], whole[-1][0]), (steps, step)


def test_what_a_sampler_remembers_survives_half_precision(small: SmallModels) -> None:
    scheduler = make_scheduler(choose("UniPC", None), Noise())
    scheduler.set_timesteps(6, device="cpu")
    latents = torch.randn(1, 4, 1, 2, 2, dtype=torch.bfloat16)
    for time in scheduler.timesteps[:3]:
        latents = scheduler.step(latents * 0.5, time, latents).prev_sample
    kept = {name: torch.tensor(value.numpy()) for name, value in scheduler.memory().items()}
    other = make_scheduler(choose("UniPC", None), Noise())
    other.first_step = 3
    other.remember(kept)
    other.set_timesteps(6, device="cpu")
    for mine, theirs in zip(scheduler.timesteps[3:], other.timesteps, strict=True):
        assert mine == theirs
        one, two = (each.step(latents * 0.5, mine, latents).prev_sample for each in (scheduler, other))
        assert torch.equal(one, two)
        latents = one
    other.remember({"foreign": torch.zeros(1)})
    with pytest.raises(ValueError, match="remembers nothing called foreign"):
        other.set_timesteps(6, device="cpu")


class Kept(Quiet):
    """A control that remembers each step's checkpoint."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def step(self, done: int, snapshot: Snapshot | None = None) -> None:
        assert snapshot is not None
        self.snapshots.append(Snapshot(snapshot.step, snapshot.seed, snapshot.tensors))


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=LONG)])
def test_the_engine_goes_on_in_every_precision(small: SmallModels, tmp_path: Path, dtype: str) -> None:
    engine = DiffusersEngine(settings_of(small, tmp_path, dtype=dtype))
    engine.load()
    request = VideoRequest("a cat", width=64, height=64, frames=2, steps=3, seed=1, sampler="UniPC")
    control = Kept()
    whole = engine.generate(request, control, MemorySettings())
    assert engine.accepts(control.snapshots[1], request)
    rest = engine.generate(request, Kept(), MemorySettings(), control.snapshots[1])
    assert (rest.frames == whole.frames).all()


def test_out_of_memory_leaves_an_engine_that_works_as_before(
    small: SmallModels, make_loras: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = DiffusersEngine(settings_of(small, tmp_path))
    engine.load()
    request = VideoRequest("a cat", width=64, height=64, frames=2, steps=2, seed=1)
    before = engine.generate(request, Quiet(), MemorySettings()).frames
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    with monkeypatch.context() as patch:
        patch.setattr(engine._pipeline.vae, "decode", lambda *_: (_ for _ in ()).throw(full))
        with pytest.raises(EngineError) as caught:
            engine.generate(replace(request, loras=[Lora("kohya")]), Quiet(), MemorySettings())
    assert caught.value.reason == "OOM"
    engine.release()
    engine.warm_up()
    assert (engine.generate(request, Quiet(), MemorySettings()).frames == before).all()


def test_a_picture_to_start_from_is_not_scaled_as_noise() -> None:
    scheduler = make_scheduler(choose("Euler", None), Noise())
    scheduler.set_timesteps(10, device="cpu")
    assert scheduler.init_noise_sigma > 5
    scheduler.scaled = True
    assert scheduler.init_noise_sigma == 1
    scheduler.scaled, scheduler.first_step = False, 4
    assert scheduler.init_noise_sigma == 1
    assert len(scheduler.timesteps) == 6


@pytest.fixture
def fresh(small: SmallModels, make_loras: None, tmp_path: Path) -> Callable[..., Models]:
    def start(**fields: Any) -> Models:
        return Models(settings_of(small, tmp_path / "scratch", **fields), Library(small.root, tmp_path / "scratch"))

    return start


def test_going_back_to_a_model_needs_no_disk(fresh: Callable[..., Models], small: SmallModels) -> None:
    models = fresh()
    for model in ("folder", "folder", "single", "folder"):
        with models.ready(VideoRequest("x", model=model)) as ready:
            assert ready.made_with["model"] == model
    assert [(load.model, load.cache) for load in models.loads()] == [
        ("folder", "cold"), ("single", "switched"), ("folder", "cached")
    ]  # fmt: skip
    assert models.loads() == []
    unet = models.pipeline.unet
    with models.ready(VideoRequest("x", motion_module="v2")) as ready:
        a, b = (pipeline.get_submodule(UNET_LAYER).weight.data_ptr() for pipeline in (unet, ready.pipeline.unet))
        assert a == b, "what is equal is there once"


def test_without_a_budget_every_switch_reads_the_disk(fresh: Callable[..., Models]) -> None:
    models = fresh(model_cache_gib=0)
    for model in ("folder", "single", "folder"):
        with models.ready(VideoRequest("x", model=model)):
            pass
    assert [load.cache for load in models.loads()] == ["cold", "switched", "switched"]


BREAKS = {
    "cut": (lambda content: content[: len(content) // 2], "is no whole safetensors file"),
    "pickle": (lambda content: b"\x80\x04" + content[:5000], "is no whole safetensors file"),
    "empty": (lambda content: b"", "is no whole safetensors file"),
}


@pytest.mark.parametrize("how", ["cut", "pickle", pytest.param("empty", marks=LONG)])
def test_a_broken_file_is_told_and_the_pipeline_stays(
    fresh: Callable[..., Models], small: SmallModels, how: str
) -> None:
    models = fresh()
    before = Result(models)
    path = small.root / "checkpoint" / f"{how}.safetensors"
    change, message = BREAKS[how]
    path.write_bytes(change(small.file.read_bytes()))
    try:
        with pytest.raises(EngineError, match=message) as caught, models.ready(VideoRequest("x", model=how)):
            pass
        assert caught.value.reason == "MODEL_LOAD_FAIL"
        assert how in caught.value.message
        assert Result(models) == before
    finally:
        path.unlink()


def test_parts_that_do_not_belong_together_leave_the_pipeline(fresh: Callable[..., Models]) -> None:
    models = fresh()
    before = Result(models)
    with pytest.raises(EngineError, match="do not match") as caught, models.ready(VideoRequest("x", model="tiny")):
        pass
    assert caught.value.reason == "MODEL_LOAD_FAIL"
    assert Result(models) == before


FOREIGN = {
    "conditioner.embedders.0.x": "Stable Diffusion XL",
    "cond_stage_model.model.x": "Stable Diffusion 2",
    "anything.else": "holds no UNet",
}


@pytest.mark.parametrize("key", FOREIGN)
def test_a_checkpoint_of_another_family_is_named(fresh: Callable[..., Models], small: SmallModels, key: str) -> None:
    path = small.root / "checkpoint" / "other.safetensors"
    store({key: torch.zeros(1)}, path)
    try:
        with pytest.raises(EngineError, match=FOREIGN[key]), fresh().ready(VideoRequest("x", model="other")):
            pass
    finally:
        path.unlink()


def test_an_inpainting_checkpoint_and_a_checkpoint_as_motion_module_are_named(
    fresh: Callable[..., Models], small: SmallModels
) -> None:
    paint = small.root / "checkpoint" / "paint.safetensors"
    store({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1, 9, 1, 1)}, paint)
    wrong = small.root / "motion_module" / "wrong.safetensors"
    shutil.copy(small.file, wrong)
    try:
        with pytest.raises(EngineError, match="inpainting"), fresh().ready(VideoRequest("x", model="paint")):
            pass
        with (
            pytest.raises(EngineError, match="no motion module"),
            fresh().ready(VideoRequest("x", motion_module="wrong")),
        ):
            pass
    finally:
        paint.unlink()
        wrong.unlink()


def test_a_single_file_without_a_tokenizer_says_what_to_put_where(small: SmallModels, tmp_path: Path) -> None:
    root = tmp_path / "models"
    for path in (small.file, small.file.with_suffix(".json")):
        (root / "checkpoint").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / "checkpoint")
    shutil.copytree(small.root / "motion_module", root / "motion_module")
    settings = EngineSettings(checkpoint="single", motion_module="v3", models_dir=str(root), scratch_dir=str(tmp_path))
    models = Models(settings, Library(root, tmp_path))
    with (
        pytest.raises(EngineError, match=r"put vocab.json and merges.txt.* into .*models/tokenizer") as caught,
        models.ready(VideoRequest("x")),
    ):
        pass
    assert caught.value.reason == "MODEL_LOAD_FAIL"
    shutil.copytree(small.root / "tokenizer", root / "tokenizer")
    with models.ready(VideoRequest("x")):
        pass
    config = json.loads((root / "checkpoint" / "single.json").read_text())
    assert config["text_encoder"]["vocab_size"] == len(models.pipeline.tokenizer)


def test_another_file_of_the_same_name_is_another_model(fresh: Callable[..., Models], small: SmallModels) -> None:
    models = fresh()
    name, lora = VideoRequest("x", model="single", loras=[Lora("kohya")]), small.root / "lora" / "kohya.safetensors"
    before, content = models.select(name).identity(), lora.read_bytes()
    assert before == models.select(name).identity()
    assert before != models.select(VideoRequest("x", model="single", loras=[Lora("kohya", 0.5)])).identity()
    assert before != models.select(VideoRequest("x", model="folder", loras=[Lora("kohya")])).identity()
    try:
        shutil.copy(small.root / "lora" / "words.safetensors", lora)
        assert models.select(name).identity() != before
    finally:
        lora.write_bytes(content)
    assert models.select(name).identity() == before


def test_the_fingerprint_covers_code_models_and_precision(
    models: Models, small: SmallModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(small.root, tmp_path)
    folder, single = library.find("checkpoint", "folder"), library.find("checkpoint", "single")
    before = fingerprint(library, "fp32", folder)
    assert before == fingerprint(library, "fp32", folder)
    assert len({before, fingerprint(library, "fp16", folder), fingerprint(library, "fp32", single)}) == 3
    monkeypatch.setattr("webui.engine.loading.file_checksum", lambda path: f"changed {path.name}")
    assert fingerprint(library, "fp32", folder) != before, "the engine's own code is part of it"


@pytest.mark.parametrize("kind", ["model", "motion_module", "vae"])
def test_a_model_that_went_away_is_a_plain_message(fresh: Callable[..., Models], kind: str) -> None:
    with pytest.raises(EngineError, match="gone does not exist") as caught:
        fresh().select(VideoRequest("x", **{kind: "gone"}))
    assert caught.value.reason == "MODEL_LOAD_FAIL"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), "OOM"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronous"), "OOM"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "OOM"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "OOM"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "OOM"),
        (MemoryError(), "HOST_OOM"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"), "HOST_OOM"),
        (RuntimeError("CUDA error: device-side assert triggered"), "CUDA_ERROR"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "CUDA_ERROR"),
        (RuntimeError("CUDA error: unspecified launch failure"), "CUDA_ERROR"),
        (RuntimeError("CUDA error: an illegal instruction was encountered"), "CUDA_ERROR"),
        (RuntimeError("CUDA error: misaligned address"), "CUDA_ERROR"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "GPU_LOST"),
        (RuntimeError("CUDA error: no CUDA-capable device is detected"), "GPU_LOST"),
        (RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"), "GPU_LOST"),
        (RuntimeError("No CUDA GPUs are available"), "GPU_LOST"),
        (RuntimeError("CUDA error: unknown error"), "CUDA_ERROR"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "CUDA_ERROR"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), "CUDA_ERROR"),
        (RuntimeError("cuFFT error: CUFFT_INTERNAL_ERROR"), "CUDA_ERROR"),
        (RuntimeError("NCCL Error 1: unhandled cuda error"), "CUDA_ERROR"),
        (ValueError("a plain mistake"), "UNKNOWN"),
        (EngineError("TIMEOUT", "kept"), "TIMEOUT"),
    ],
)
def test_what_torch_says_becomes_the_right_reason(error: Exception, reason: str) -> None:
    assert to_engine_error(error, "UNKNOWN").reason == reason
