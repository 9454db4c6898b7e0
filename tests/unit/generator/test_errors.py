from __future__ import annotations

import pytest

from generator.errors import Problem, ToolError, Unhealthy, UserError


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (
            Problem(
                file="cluster.yaml", line=41, path="hosts.gpu-02.gpus[0]", value='"GPU-12"', hint="run nvidia-smi -L"
            ),
            'cluster.yaml:41: hosts.gpu-02.gpus[0]: "GPU-12": run nvidia-smi -L',
        ),
        (Problem(file="cluster.yaml", path="name", hint="is missing"), "cluster.yaml: name: is missing"),
        (Problem(hint="needs root"), "needs root"),
    ],
)
def test_a_problem_says_where_and_what_to_do(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_a_user_error_tells_all_problems_at_once() -> None:
    error = UserError([Problem(hint="first"), Problem(hint="second")])
    assert str(error) == "first\nsecond"
    assert error.exit_code == 1
    assert UserError("only one").problems == (Problem(hint="only one"),)


def test_a_user_error_without_a_problem_is_our_bug() -> None:
    with pytest.raises(ValueError, match="at least one"):
        UserError([])


def test_a_tool_error_can_be_pasted_and_keeps_the_last_lines_only() -> None:
    error = ToolError(["docker", "run", "a b"], 125, "\n".join(f"line {n}" for n in range(100)), "free some space")
    text = str(error)
    assert text.startswith("docker run 'a b': exit status 125\n")
    assert "line 99" in text
    assert "line 70" in text
    assert "line 69" not in text
    assert text.endswith("What to do: free some space")


def test_exit_codes() -> None:
    assert (UserError("x").exit_code, Unhealthy("x").exit_code, ToolError(["x"], None, "").exit_code) == (1, 2, 2)
    assert "did not finish in time" in str(ToolError(["x"], None, ""))
