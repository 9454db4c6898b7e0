from __future__ import annotations

from pathlib import Path

import pytest

from generator.errors import UserError
from generator.lock_edit import with_entry
from generator.model import ModelKind
from generator.models_lock import LockedModel, load_lock, name_of, parse_lock, wrong_address
from generator.ops.models import show_bytes

EXAMPLE = Path(__file__).parents[3] / "config/models.lock.example.yaml"
SHA = "a" * 64
NEW = LockedModel(name="new", kind=ModelKind.LORA, size=100, sha256="b" * 64, source="https://x.net/new.safetensors")


def entry(name: str = "a", kind: str = "lora", **more: object) -> str:
    facts = {"name": name, "kind": kind, "size": 100, "sha256": f"'{SHA}'", **more}
    return "  - {" + ", ".join(f"{key}: {value}" for key, value in facts.items()) + "}\n"


def problems(text: str) -> list[str]:
    with pytest.raises(UserError) as told:
        parse_lock(text, "models.lock.yaml")
    return [str(problem) for problem in told.value.problems]


def test_the_example_is_without_fault_and_shows_every_key() -> None:
    loaded = load_lock(EXAMPLE)
    assert set(LockedModel.model_fields) <= {str(path[-1]) for path in loaded.marks if path}
    assert loaded.lock.models[0].place == "checkpoint/realistic_vision_v51.safetensors"
    assert max(map(len, EXAMPLE.read_text().splitlines())) <= 120


def test_a_name_with_and_without_the_suffix_is_one() -> None:
    (said,) = problems("models:\n" + entry("a") + entry("A.safetensors") + entry("a", "vae"))
    assert said.startswith("models.lock.yaml:3: models[1].name: A.safetensors: this lora is listed twice (line 2)")


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.PTH", "a.bin", "a.pkl"])
def test_pickles_are_refused_by_name_and_by_address(name: str) -> None:
    assert "pickle" in problems("models:\n" + entry(name))[0]
    (said,) = problems("models:\n" + entry(source=f'"https://x.net/{name}?raw=1"'))
    assert said.startswith("models.lock.yaml:2: models[0].source: a pickle")


@pytest.mark.parametrize("name", ["../a", "a/b", ".a", '"a b"', '"a\\nb"', "..", '""'])
def test_names_stay_in_their_folder(name: str) -> None:
    assert "not a plain file name" in problems("models:\n" + entry(name))[0]


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    (said,) = problems("models:\n" + entry(source="https://me:s3cret@x.net/a"))
    assert "password" in said
    assert "s3cret" not in said


@pytest.mark.parametrize("url", ["https://", "https:///a", "https://x:99999/a", "https://[::1/a", "http://x:0/"])
def test_addresses_that_lead_nowhere(url: str) -> None:
    assert wrong_address(url)


@pytest.mark.parametrize("url", ["ftp://x/a", "file:///a", "a", "https://x/ y"])
def test_addresses_of_another_kind(url: str) -> None:
    assert "not an address" in problems("models:\n" + entry(source=f'"{url}"'))[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "models add"),
        ("- a\n", "models:, mirrors:"),
        ("models:\n", "models: nothing: is empty"),
        ("models: a\n", "must be a list"),
        ("mirrors: []\n", "missing; add it (config/models.lock.example.yaml shows how)"),
        ("models:\n" + entry(size=5), "at least 10"),
        ("models:\n" + entry(size='"100"'), "whole number, without quotes"),
        ("models:\n" + entry(sha256="abc"), "64 characters"),
        ("models:\n" + entry(kind="model"), "not one of checkpoint, motion_module, lora, vae, controlnet"),
        ("models:\n" + entry(licence="x"), 'did you mean "license"'),
        ("models:\n" + entry(mirrors="https://x/a"), "must be a list"),
    ],
)
def test_every_mistake_has_words(text: str, said: str) -> None:
    assert said in "\n".join(problems(text))


@pytest.mark.parametrize(
    ("origin", "name"),
    [
        ("https://x.net/a/b.safetensors?download=true#x", "b"),
        ("https://x.net/a/My%20Model.safetensors", "My_Model"),
        ("/home/me/mm_sd15_v3.safetensors", "mm_sd15_v3"),
        ("../.hidden.safetensors", "hidden"),
        ("https://x.net/", ""),
    ],
)
def test_a_model_is_called_as_its_file(origin: str, name: str) -> None:
    assert name_of(origin) == name


# --- editing ---------------------------------------------------------------------------------------------------------

COMMENTED = f"""\
# ours
models:   # all of them
  # the first
  - name: a   # as in the article
    kind: lora
    size: 100
    sha256: '{SHA}'  # checked by hand

  # the end
mirrors: [https://m.net]  # fast
"""


def added(text: str, model: LockedModel = NEW) -> str:
    edited = with_entry(text, model, "models.lock.yaml")
    assert model in parse_lock(edited, "").lock.models
    return edited


def test_an_entry_is_appended_and_every_comment_stays() -> None:
    edited = added(COMMENTED)
    block = (
        f"  - name: new\n    kind: lora\n    size: 100\n    sha256: {'b' * 64}\n"
        "    source: https://x.net/new.safetensors\n"
    )
    assert edited == COMMENTED.replace("# checked by hand\n", "# checked by hand\n" + block)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "models:\n",
        "models: []\n",
        "models: []  # none yet",
        "# only a comment\nmodels: null\n",
        "models:\n" + entry(),
        ("models:\n" + entry()).rstrip("\n"),
        "models:\n" + entry().replace("  - ", "- "),
        "models:\n" + entry().replace("  - ", "      - "),
        ("models:\n" + entry()).replace("\n", "\r\n"),
        "models:\n" + entry(mirrors="[https://m.net/a]"),
        "models:\n  - name: a\n    kind: lora\n    size: 100\n    sha256: >-\n      " + SHA + "\n\n# end\n",
    ],
)
def test_all_ways_of_writing_a_list_can_be_added_to(text: str) -> None:
    edited = added(text)
    again = added(edited, NEW.model_copy(update={"name": "second"}))
    assert [one.name for one in parse_lock(again, "").lock.models][-2:] == ["new", "second"]


@pytest.mark.parametrize("text", ["{models: []}\n", "models: [" + entry().strip().removeprefix("- ") + "]\n"])
def test_where_nothing_can_be_added_the_entry_is_shown(text: str) -> None:
    with pytest.raises(UserError, match=r"(?s)by hand.*\n    source: https://x.net/new.safetensors"):
        with_entry(text, NEW, "")


def test_an_entry_is_replaced_value_by_value() -> None:
    model = LockedModel(name="a", kind=ModelKind.LORA, size=101, sha256="c" * 64, source="https://x/a", license="x: y")
    edited = with_entry(COMMENTED, model, "")
    expected = COMMENTED.replace("size: 100", "size: 101").replace(f"'{SHA}'", "c" * 64)
    expected = expected.replace("by hand\n", 'by hand\n    source: https://x/a\n    license: "x: y"\n')
    assert edited == expected
    assert parse_lock(edited, "").lock.models == (model,)


@pytest.mark.parametrize(
    "text",
    ["yes", "1.10", "0x10", "a # b", "- a", "null", "ä", "a: b", " a", "1e5", "2026-01-02", "a 🎈", "\n\x85\u2028🎈"],
)
def test_a_license_comes_back_as_it_was(text: str) -> None:
    model = NEW.model_copy(update={"license": text, "sha256": "1" * 64, "name": "123"})
    assert parse_lock(with_entry("", model, ""), "").lock.models == (model,)


def test_a_broken_file_is_told_and_not_edited() -> None:
    with pytest.raises(UserError, match=r"models\[0\]\.size"):
        added("models:\n" + entry(size=1))
    with pytest.raises(UserError, match="not valid YAML"):
        added("models: [\n")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (999_999, "1 MB"), (629_145_681, "629 MB")],
)
def test_sizes_are_short(count: int, text: str) -> None:
    assert show_bytes(count) == text
