"""What a prompt's text says beside its words: prompt travel and attention weights. Pure."""

from __future__ import annotations

import re

# A line that begins with a frame's number and a colon; the same rule as the public API's.
TRAVEL_LINE = re.compile(r"[ \t]*(\d{1,9})[ \t]*:[ \t]*(\S.*)")
WEIGHT_END = re.compile(r":[ \t]*([+-]?(?:\d+\.?\d*|\.\d+))[ \t]*\)")
OPENING, CLOSING = {"(": ")", "[": "]"}, {")": 1.1, "]": 1 / 1.1}
ESCAPABLE = "()[]\\"
DEPTH_LIMIT = 32  # of brackets; more of them cannot change a weight that is limited
WEIGHT_LIMIT = 10.0  # what a text encoder makes of more is only noise, and soon infinite

Weighted = list[tuple[str, float]]


def travel_lines(prompt: str) -> list[tuple[int, str]]:
    """(frame, text) of each travel line, as written; none for a plain prompt."""
    matches = map(TRAVEL_LINE.fullmatch, prompt.splitlines())
    return [(int(match[1]), match[2].strip()) for match in matches if match]


def travel_problem(prompt: str, frames: int) -> str | None:
    """Why a prompt cannot travel through a clip of `frames` frames."""
    numbers = [frame for frame, _ in travel_lines(prompt)]
    if late := [number for number in numbers if number >= frames]:
        return f"travels to frame {late[0]}, and there are only {frames}, numbered from 0"
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        return f"says twice what is at frame {twice[0]}"
    return None


def key_prompts(prompt: str) -> dict[int, str]:
    """The whole prompt at each key frame, by ascending frame; a plain prompt is one at frame 0.

    Lines before the first travel line belong before each of them, all other lines after each of them.
    """
    head: list[str] = []
    tail: list[str] = []
    keys: dict[int, str] = {}
    for line in prompt.splitlines():
        if match := TRAVEL_LINE.fullmatch(line):
            keys[int(match[1])] = match[2]
        else:
            (tail if keys else head).append(line)
    if not keys:
        return {0: prompt}
    return {frame: _joined([*head, keys[frame], *tail]) for frame in sorted(keys)}


def _joined(parts: list[str]) -> str:
    return ", ".join(text for part in parts if (text := part.strip(" \t,")))


def weighted(prompt: str) -> Weighted:
    """Texts and how much each counts: (x) 1.1 times, [x] 1/1.1 times, (x:1.5) 1.5 times, nested ones multiplied.

    A backslash before a bracket makes it text. What is opened and never closed goes on to the end; what is closed and
    was never opened is text. Weights are kept within ±WEIGHT_LIMIT. Neighbours of the same weight are one text.
    """
    open_: list[tuple[str, Weighted]] = [("", [])]
    text, at = "", 0
    while at < len(prompt):
        letter, inside = prompt[at], open_[-1]
        ends = WEIGHT_END.match(prompt, at) if letter == ":" and inside[0] == "(" else None
        closes = ends is not None or (letter in CLOSING and OPENING.get(inside[0]) == letter)
        if letter == "\\" and prompt[at + 1 : at + 2] and prompt[at + 1] in ESCAPABLE:
            text, at = text + prompt[at + 1], at + 2
            continue
        opens = letter in OPENING and len(open_) <= DEPTH_LIMIT
        if not opens and not closes:
            text, at = text + letter, at + 1
            continue
        inside[1].append((text, 1.0))
        text = ""
        if opens:
            open_.append((letter, []))
        else:
            _close(open_, float(ends[1]) if ends else CLOSING[letter])
        at = ends.end() if ends else at + 1
    open_[-1][1].append((text, 1.0))
    while len(open_) > 1:
        _close(open_, CLOSING[OPENING[open_[-1][0]]])
    return _merged(open_[0][1])


def _close(open_: list[tuple[str, Weighted]], weight: float) -> None:
    _, pieces = open_.pop()
    open_[-1][1].extend((text, before * weight) for text, before in pieces)


def _merged(pieces: Weighted) -> Weighted:
    merged: Weighted = []
    for text, weight in pieces:
        weight = max(-WEIGHT_LIMIT, min(WEIGHT_LIMIT, round(weight, 6)))
        if not text:
            continue
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged
