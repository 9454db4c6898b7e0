"""Prompts to embeddings: of any length, with attention weights, per frame where a prompt travels."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import torch

from webui.engine.base import EngineError, Told, nobody
from webui.engine.travel import per_frame
from webui.prompt import key_prompts, weighted
from webui.request import VideoRequest

CHUNKS_LIMIT = 8  # of 75 tokens: attention to more costs memory for every frame, and nobody means it
MEAN_FLOOR = 1e-3  # below that a mean is rounding, and says nothing about how strong an embedding is
BREAK = re.compile(r"\bBREAK\b")  # begins a new chunk, as in AUTOMATIC1111

Chunk = list[tuple[int, float]]
"""Token numbers and their weights, without start, end and padding."""


class TextReader:
    """One pipeline's tokenizer and text encoder. `clip_skip` counts layers from the end, 1 is the last one."""

    def __init__(self, pipeline: Any, clip_skip: int = 1) -> None:
        self._pipeline = pipeline
        self._tokenizer = pipeline.tokenizer
        self._encoder = pipeline.text_encoder
        self._clip_skip = clip_skip
        self._read: dict[tuple[tuple[int, float], ...], torch.Tensor] = {}
        layers = self._encoder.config.num_hidden_layers
        if clip_skip > layers:
            raise EngineError("INVALID_INPUT", f"clip_skip {clip_skip}: this text encoder has {layers} layers")
        self._length = min(self._tokenizer.model_max_length, self._encoder.config.max_position_embeddings) - 2

    @cached_property
    def _device(self) -> Any:
        """The pipeline looks through all its modules for it: only who reads, and does not count alone, has to know."""
        return self._pipeline._execution_device

    def chunks(self, prompt: str) -> list[Chunk]:
        """At least one, and no more than CHUNKS_LIMIT."""
        return self._all_chunks(prompt)[:CHUNKS_LIMIT]

    def ignored(self, prompt: str) -> int:
        """How many tokens are beyond the limit."""
        return sum(map(len, self._all_chunks(prompt)[CHUNKS_LIMIT:]))

    def embed(self, chunks: list[Chunk], count: int) -> torch.Tensor:
        """(1, count * tokens, width); what is not there of the `count` chunks is empty text."""
        return torch.cat([self._embed_once(chunk) for chunk in chunks + [[]] * (count - len(chunks))], dim=1)

    def _embed_once(self, chunk: Chunk) -> torch.Tensor:
        """The prompts of a journey have most of their text in common."""
        known = tuple(chunk)
        if known not in self._read:
            self._read[known] = self._embed(chunk)
        return self._read[known]

    def _all_chunks(self, prompt: str) -> list[Chunk]:
        found: list[Chunk] = []
        for number, part in enumerate(self._parts(prompt)):
            if number == 0 or part:
                found += [part[at : at + self._length] for at in range(0, max(1, len(part)), self._length)]
        return found

    def _parts(self, prompt: str) -> list[Chunk]:
        """The tokens between BREAKs."""
        parts: list[Chunk] = [[]]
        for text, weight in weighted(prompt):
            for number, piece in enumerate(BREAK.split(text)):
                if number:
                    parts.append([])
                tokens = self._tokenizer(piece, add_special_tokens=False, truncation=False, verbose=False).input_ids
                parts[-1] += [(token, weight) for token in tokens]
        return parts

    def _embed(self, chunk: Chunk) -> torch.Tensor:
        """(1, tokens, width) with start, end and padding, in the encoder's type."""
        tokenizer = self._tokenizer
        padding = self._length - len(chunk)
        tokens = [tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id]
        tokens += [tokenizer.pad_token_id] * padding
        states = self._encode(torch.tensor([tokens], device=self._device))
        if all(weight == 1 for _, weight in chunk):
            return states
        weights = torch.tensor([1.0, *(weight for _, weight in chunk), *[1.0] * (padding + 1)], device=states.device)
        return _weighted(states, weights)

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        encoder = self._encoder
        mask = torch.ones_like(tokens) if getattr(encoder.config, "use_attention_mask", False) else None
        if self._clip_skip == 1:
            states = encoder(tokens, attention_mask=mask)[0]
        else:
            layers = encoder(tokens, attention_mask=mask, output_hidden_states=True).hidden_states
            states = final_norm(encoder)(layers[-self._clip_skip])
        result: torch.Tensor = states.to(dtype=encoder.dtype, device=self._device)
        return result


def final_norm(encoder: Any) -> Any:
    """The last layer's norm, which also fits those before it."""
    return getattr(encoder, "text_model", encoder).final_layer_norm


def _weighted(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiplies, and keeps the mean of all, so that a few loud words do not make the whole prompt louder."""
    louder = states.float() * weights.view(1, -1, 1)
    before, after = states.float().mean(), louder.mean()
    if before.abs() > MEAN_FLOOR and after.abs() > MEAN_FLOOR:
        louder = louder * (before / after)
    return louder.to(states.dtype)


def embeddings(pipeline: Any, request: VideoRequest, guided: bool, told: Told = nobody) -> torch.Tensor:
    """What the UNet reads: (frames, tokens, width), or guided (2 * frames, …) with the negative prompt first.

    All prompts are padded to as many chunks as the longest of them has. `told` hears of each key frame's that is read.
    """
    reader = TextReader(pipeline, request.clip_skip)
    keys = {frame: reader.chunks(text) for frame, text in key_prompts(request.prompt).items()}
    negative = reader.chunks(request.negative_prompt) if guided else []
    count = max(map(len, [*keys.values(), negative]))
    read: dict[int, torch.Tensor] = {}
    for frame, chunks in keys.items():
        read[frame] = reader.embed(chunks, count)
        told(len(read), len(keys))
    shown = per_frame(read, request.frames, request.closed_loop)
    if not guided:
        return shown
    return torch.cat([reader.embed(negative, count).expand(request.frames, -1, -1), shown])


def length_warnings(pipeline: Any, request: VideoRequest) -> list[str]:
    """What a prompt says beyond the limit, and nobody reads."""
    reader = TextReader(pipeline)
    prompts = [("prompt", text) for text in key_prompts(request.prompt).values()]
    found = [(name, reader.ignored(text)) for name, text in [*prompts, ("negative_prompt", request.negative_prompt)]]
    return [
        f"{name} is too long: its last {count} tokens were not read; at most {CHUNKS_LIMIT} x 75 are"
        for name, count in found
        if count
    ]
