from __future__ import annotations

import time

import pytest

from generator import processes
from generator.errors import ToolError

# The shell's own child holds the pipe.
SLOW = ["bash", "-c", "echo begun; sleep 20 | cat; true"]


def test_a_deadline_holds_also_for_what_a_program_has_started() -> None:
    begin = time.monotonic()
    with pytest.raises(ToolError, match="did not finish in time"):
        processes.run(SLOW, timeout=0.2)
    with pytest.raises(ToolError, match="did not finish in time"):
        list(processes.stream(SLOW, timeout=0.2))
    assert time.monotonic() - begin < 5
