"""What a video can start from and be steered by: a request of every kind, for the models of `webui_engine`."""

from __future__ import annotations

from typing import Any

from tests.integration.webui_media import clip, image, pixels

FIRST, LAST = image(pixels(1)), image(pixels(2), "JPEG")
EDGES = [image(pixels(seed)) for seed in range(3, 9)]
CLIP = clip([pixels(seed) for seed in range(6)], "gif")
CONTROL = {"model": "tiny", "image": EDGES[0]}
SPARSE = {"model": "sparse", "images": [{"frame": 0, "image": FIRST}, {"frame": 5, "image": LAST}]}

MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "picture": {"init_image": FIRST, "last_frame": LAST, "width": 72},
    "clip": {"init_video": CLIP, "denoising_strength": 0.8, "steps": 5},
    "travel": {"prompt": "0: a red circle\n4: a (blue:1.3) square"},
    "closed windows": {"frames": 6, "context_batch_size": 3, "context_stride": 2, "closed_loop": True, "steps": 3},
    "closed": {"closed_loop": True},
    "free init": {"free_init": {"iterations": 3}, "steps": 2},
    "free init from a picture": {"free_init": {"iterations": 2}, "init_image": FIRST},
    "controls": {"controlnets": [CONTROL | {"end": 0.5}], "sparse_control": SPARSE},
    "ancestral": {"sampler": "Euler a", "init_image": FIRST},
    "multistep": {"sampler": "DPM++ 2M Karras", "init_video": CLIP, "steps": 6},
    "stochastic free init": {"sampler": "DPM++ 2M SDE", "free_init": {"iterations": 2}},
}
