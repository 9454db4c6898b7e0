from __future__ import annotations

import pytest

from generator.errors import UserError
from generator.model import ModelKind
from generator.ops.model_add import Addition, _draft, secret_looking

ASKED = "https://models.example/download/1?type=Model&token=hunter2"


def test_a_key_in_an_address_is_not_written_into_the_lock() -> None:
    """The lock is shared; the address that everybody may use is named besides."""
    with pytest.raises(UserError, match=r"token .* --source") as caught:
        _draft(Addition(ASKED, ModelKind.LORA, "x"))
    assert "hunter2" not in str(caught.value)
    shared = "https://models.example/x.safetensors"
    assert _draft(Addition(ASKED, ModelKind.LORA, "x", shared)).source == shared


@pytest.mark.parametrize("query", ["download=true", "type=Model&format=SafeTensor&size=pruned", "monkey=1", "design=2"])
def test_other_parameters_are_kept(query: str) -> None:
    assert secret_looking(f"https://models.example/x.safetensors?{query}") == []


@pytest.mark.parametrize(
    "name", ["token", "access_token", "api_key", "apiKey", "key", "sig", "X-Amz-Signature", "auth"]
)
def test_what_looks_like_a_key(name: str) -> None:
    assert secret_looking(f"https://models.example/x?a=b&{name}=hunter2") == [name]
