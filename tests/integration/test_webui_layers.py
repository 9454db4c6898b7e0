"""Long clips through the UNet layer by layer, held against diffusers' own forward, with tiny models in this process."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.integration.webui_engine import small, tiny_engine
from tests.integration.webui_modes import CONTROL, EDGES, SPARSE
from webui.engine import layers, sd15
from webui.engine.context import Window, windows
from webui.engine.controls import controls_for
from webui.engine.diffusers import DiffusersEngine
from webui.engine.layers import Blend
from webui.engine.windows import WindowedUNet, windowed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers, about numpy 2
MB = 1e6


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiffusersEngine]:
    threads = torch.get_num_threads()
    yield tiny_engine(tmp_path_factory.mktemp("engine"))
    torch.set_num_threads(threads)


def look(engine: DiffusersEngine, seen: list[Window], **fields: Any) -> torch.Tensor:
    """The noise that the UNet finds in a clip."""
    request = small(**fields)
    pipeline, unet = engine._pipeline, engine._pipeline.unet
    random = torch.Generator().manual_seed(3)
    sample = torch.randn(2, 4, request.frames, request.height // 8, request.width // 8, generator=random)
    texts = torch.randn(2 * request.frames, 77, 32, generator=random)
    with torch.inference_mode():
        controls = controls_for(pipeline, request, engine._models.control)
        with windowed(unet, seen, controls):
            found: torch.Tensor = unet(sample, torch.tensor(500), encoder_hidden_states=texts).sample
    return found


def as_one(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"width": 72, "height": 104},
        {"controlnets": [{"model": "tiny", "images": EDGES}]},
        {"sparse_control": SPARSE, "controlnets": [CONTROL]},
    ],
    ids=["plain", "odd size", "controlled", "sparsely controlled"],
)
@pytest.mark.parametrize(("at_least", "times"), [(1, 2), (1 << 14, 1)], ids=["in parts", "at once"])
def test_windows_over_all_frames_are_as_none(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], at_least: int, times: int
) -> None:
    monkeypatch.setattr(layers, "AT_LEAST", at_least)
    assert as_one(look(engine, [tuple(range(6))] * times, **fields), look(engine, [], **fields))


def test_windows_count(engine: DiffusersEngine) -> None:
    made = [look(engine, windows(16, 8, 4, stride), frames=16) for stride in (1, 2)]
    made.append(look(engine, [], frames=16))
    assert not any(as_one(made[one], made[other]) for one, other in [(0, 1), (0, 2), (1, 2)])


def test_a_frame_s_part_is_that_of_the_windows_that_see_it() -> None:
    tokens = torch.arange(6.0)[None, :, None]
    seen: list[list[float]] = []

    def mean(some: torch.Tensor) -> torch.Tensor:
        seen.extend(some[..., 0].tolist())
        return some.mean(1, keepdim=True).expand(some.shape).contiguous()

    blended = Blend([(0, 1, 2), (2, 3, 4), (3, 4, 5)], 6, tokens)(mean, tokens)[0, :, 0]
    assert seen == [[0, 1, 2], [2, 3, 4], [3, 4, 5]]
    # Weights 1 2 1 in each: frame 2 is the end of one window and the beginning of the next.
    assert blended.tolist() == pytest.approx([1, 1, (1 + 3) / 2, (2 * 3 + 4) / 3, (3 + 2 * 4) / 3, 4])


def test_a_blend_of_what_is_left_alone_is_what_it_was() -> None:
    tokens = torch.randn(5, 40, 3, generator=torch.Generator().manual_seed(1))
    for closed in (False, True):
        blend = Blend(windows(40, 16, 4, 2, closed), 40, tokens)
        assert torch.allclose(blend(lambda some: some.clone(), tokens), tokens, atol=1e-6)


# --- memory ---------------------------------------------------------------------------------------------------------


class Seen:
    """How much the modules are given at a time: frames that see one another, and pixels of frames."""

    def __init__(self, unet: Any) -> None:
        self.together: set[int] = set()
        self.pixels = 0
        self._hooks = []
        for module in unet.modules():
            if isinstance(module, AnimateDiffTransformer3D):
                hooks = [block.attn1.register_forward_pre_hook(self._frames) for block in module.transformer_blocks]
                self._hooks += [*hooks, module.proj_in.register_forward_pre_hook(self._tokens)]
            elif type(module).__name__ in ("ResnetBlock2D", "Transformer2DModel"):
                self._hooks.append(module.register_forward_pre_hook(self._pictures))

    def _frames(self, _: Any, arguments: tuple[torch.Tensor]) -> None:
        self.together.add(arguments[0].shape[1])

    def _tokens(self, _: Any, arguments: tuple[torch.Tensor]) -> None:
        self.pixels = max(self.pixels, arguments[0].shape[0] * arguments[0].shape[1])

    def _pictures(self, _: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        self.pixels = max(self.pixels, arguments[0].shape[0] * arguments[0][0, 0].numel())

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()


@pytest.mark.parametrize("frames", [32, 64])
def test_no_layer_sees_more_at_a_time_than_one_window_has(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    monkeypatch.setattr(layers, "AT_LEAST", 1)
    seen = Seen(engine._pipeline.unet)
    try:
        look(engine, windows(frames, 16, 4), frames=frames)
    finally:
        seen.end()
    assert seen.together == {16}
    assert seen.pixels <= 2 * 16 * 8 * 8, "two prompts, a window, and as many pixels as a small picture has"


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that live at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known[storage] = size = storage.nbytes()
                weakref.finalize(storage, self._gone, size)
                self._now += size
                self.peak = max(self.peak, self._now)
        return result

    def _gone(self, size: int) -> None:
        self._now -= size


def test_what_grows_with_the_clip_is_what_the_module_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full-size shapes and half precision, counted on tensors that have no content."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda q, *_, **__: torch.empty_like(q))

    def peak(frames: int) -> int:
        sample = torch.empty(1, 4, frames, 64, 64, dtype=torch.half, device="meta")
        texts = torch.empty(frames, 77, 768, dtype=torch.half, device="meta")
        live = Live()
        with torch.inference_mode(), windowed(unet, windows(frames, 16, 4)), live:
            unet(sample, torch.tensor(500, device="meta"), encoder_hidden_states=texts)
        return live.peak

    with torch.device("meta"):
        images, motions = UNet2DConditionModel(**sd15.UNET), MotionAdapter(use_motion_mid_block=False)
        unet = UNetMotionModel.from_unet2d(images, motions, load_weights=False)
        torch.nn.Module.to(unet, torch.half)
    unet.__class__ = WindowedUNet
    plain, short, long = (peak(frames) for frames in (16, 32, 64))
    print(f"\nMB above the weights: {plain / MB:.0f}, {short / MB:.0f}, {long / MB:.0f}")
    assert short < 1.4 * plain
    assert 15 * MB < (long - short) / 32 < 16.5 * MB
