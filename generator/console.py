"""Standard output as people read it: one console, and a line as it is."""

from __future__ import annotations

from rich.console import Console

console = Console()


def say(text: str) -> None:
    """A path may hold brackets, and a program that reads it wants no line breaks."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
