"""Standard output as people read it: one console, and a line as it is."""

from __future__ import annotations

from rich.console import Console

console = Console()


def plain(text: str, limit: int) -> str:
    """One line of at most `limit` characters, without anything that a terminal would obey: from logs and strangers."""
    kept = "".join(char if char.isprintable() else " " for char in text[: limit + 1])
    return kept if len(kept) <= limit else f"{kept[: limit - 1]}…"


def say(text: str) -> None:
    """A path may hold brackets, and a program that reads it wants no line breaks."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
