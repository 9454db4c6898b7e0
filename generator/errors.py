"""The generator's errors. One root, caught once in the command line; exit codes as in the contract."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STDERR_TAIL_LINES = 30


class GeneratorError(Exception):
    """Root of everything the generator raises on purpose."""

    exit_code = 3


@dataclass(frozen=True)
class Problem:
    """One thing the user has to change. `hint` says what to do; the rest says where. Unknown parts stay empty."""

    hint: str
    file: str = ""
    line: int | None = None
    path: str = ""
    value: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file and self.line is not None else self.file
        return ": ".join(part for part in (place, self.path, self.value, self.hint) if part)


class UserError(GeneratorError):
    """Something the user can put right; carries all problems found, not only the first."""

    exit_code = 1

    def __init__(self, problems: str | Problem | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(hint=problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        if not self.problems:
            raise ValueError("a UserError needs at least one problem")
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Unhealthy(GeneratorError):  # noqa: N818  (says what is the case, as the exit code does)
    """What runs is not what should run, or does not run well."""

    exit_code = 2


class ToolError(GeneratorError):
    """An outside program failed or could not be reached.

    Secrets must not be in `argv`: hand them to a program as a file, an environment variable or standard input.
    """

    exit_code = 2

    def __init__(self, argv: Sequence[str], returncode: int | None, stderr: str, hint: str = "") -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr_tail = tail(stderr)
        self.hint = hint
        super().__init__(self._message())

    def _message(self) -> str:
        ended = "did not finish in time" if self.returncode is None else f"exit status {self.returncode}"
        lines = [f"{shlex.join(self.argv)}: {ended}"]
        lines += [f"  | {line}" for line in self.stderr_tail.splitlines()]
        if self.hint:
            lines.append(f"What to do: {self.hint}")
        return "\n".join(lines)


def tail(text: str, lines: int = STDERR_TAIL_LINES) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])
