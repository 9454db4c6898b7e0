from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from generator import explain, marks, model
from generator.errors import UserError
from generator.load import MAX_BYTES, MAX_PROBLEMS, Loaded, load

GOOD = """\
name: x
hosts:
  gpu-02:
    address: 10.0.0.1
    roles: [worker]
    gpus: [{uuid: GPU-5f0c1a52-8e0b-4d0e-9c1e-6a2f3b4c5d01}]
models:
  checkpoint: c
  motion_module: m
  available: [{name: c, kind: checkpoint}]
"""
LAST = GOOD.count("\n")
NOBODY = 65534


def read(tmp_path: Path, content: str | bytes) -> Loaded:
    path = tmp_path / "cluster.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load(path)


def refuse(tmp_path: Path, content: str | bytes) -> list[str]:
    """The problems, without the folder's name."""
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]


def test_a_good_file_is_loaded_with_the_lines_of_its_values(tmp_path: Path) -> None:
    loaded = read(tmp_path, GOOD)
    assert loaded.cluster.hosts["gpu-02"].gpus[0].memory_gib == 24
    assert loaded.marks["hosts", "gpu-02"].line == 3, "a mapping stands at its key"
    assert loaded.marks["hosts", "gpu-02", "roles", 0] == (5, "worker")
    assert loaded.line(("hosts", "gpu-02", "gpus", 0, "memory_gib")) == 6, "a default stands where it would be written"
    assert loaded.line(("timeouts", "job_seconds")) == 1


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ("hots: 1", 'hots: unknown key; did you mean "hosts"? (allowed here: name, images, webui, hosts,'),
        ("http_port: 80", "http_port: unknown key; it belongs in gateway (allowed here: name,"),
        ("worker: {gpu: 1}", "worker.gpu: unknown key (allowed here: cpus, memory_gib, threads,"),
        (
            "storage: {nfs: {server: a, export: /x, option: ''}}",
            'storage.nfs.option: unknown key; did you mean "options"? (allowed',
        ),
        ("gateway: {tls: {mod: none}}", 'gateway.tls.mod: unknown key; did you mean "mode"? (allowed here: mode,'),
        ("gateway: {http_port: yes}", "gateway.http_port: yes: must be a whole number"),
        ('gateway: {http_port: "80"}', 'gateway.http_port: "80": must be a whole number, without quotes'),
        ("gateway: {http_port: 80.0}", "gateway.http_port: 80.0: must be a whole number"),
        ("gateway: {http_port: 0}", "gateway.http_port: 0: must be at least 1"),
        ("gateway: {http_port: 70000}", "gateway.http_port: 70000: must be at most 65535"),
        ("gateway: {http_port: [1]}", "gateway.http_port: a list: must be a whole number"),
        ("gateway: {http_port: }", "gateway.http_port: nothing: is empty; give it a value or remove the key"),
        ("gateway:", "gateway: nothing: is empty; give it a value or remove the key"),
        ("gateway: []", "gateway: a list: must hold keys and values"),
        ("gateway: {vip: 192.168.1.300}", 'gateway.vip: "192.168.1.300": not an IPv4 address; write it like'),
        (
            "gateway: {vrrp: {interface: eth 0}}",
            'gateway.vrrp.interface: "eth 0": not a network interface; `ip -4 addr',
        ),
        ("gateway: {vrrp: {interface: $(id)}}", "gateway.vrrp.interface: "),
        ("gateway: {vrrp: {router_id: 256}}", "gateway.vrrp.router_id: 256: "),
        ("gateway: {vrrp: {mode: carp}}", 'gateway.vrrp.mode: "carp": '),
        ("gateway: {vip: 3232235786}", "gateway.vip: 3232235786: is read as a number, not as text"),
        ('gateway: {vip: "fe80::1"}', 'gateway.vip: "fe80::1": not an IPv4 address'),
        (
            "gateway: {server_name: on}",
            'gateway.server_name: on: a bare on is read as true, not as text; write "on" in q',
        ),
        ("gateway: {server_name: a b}", 'gateway.server_name: "a b": not a host name; use letters'),
        ("gateway: {tls: {mode: off}}", 'gateway.tls.mode: off: not one of none, self-signed, files, acme; write "no'),
        (
            "gateway: {tls: {mode: file}}",
            'gateway.tls.mode: "file": not one of none, self-signed, files, acme; did you mean "f',
        ),
        ("gateway: {tls: {key: my.key}}", 'gateway.tls.key: "my.key": not an absolute path; start it with /'),
        ("gateway: {tls: {email: nobody}}", 'gateway.tls.email: "nobody": not an e-mail address; write one like'),
        (
            "gateway: {tls: {directory: 'http://a/b'}}",
            'gateway.tls.directory: "http://a/b": not an ACME directory; write its address, like https://',
        ),
        ("images: {tag: 0.10}", 'images.tag: 0.10: is read as a number, not as text; write "0.10" in quotes'),
        ("images: {tag: 12}", 'images.tag: 12: is read as a number, not as text; write "12" in quotes'),
        ("images: {tag: 2026-11-22}", "images.tag: 2026-11-22: some programs read this as a date"),
        ("images: {tag: a/b}", 'images.tag: "a/b": not an image tag'),
        ("images: {tag: {a: b}}", "images.tag: a mapping: must be a single value"),
        ("images: {registry: 'https://r'}", 'images.registry: "https://r": not a registry; write it like'),
        ("queue: {port: 10:30}", "queue.port: 10:30: some programs read this as a number"),
        ("queue: {limit: 010}", "queue.limit: 010: some programs read this as a number"),
        ("queue: {limit: 0x10}", "queue.limit: 0x10: some programs read this as a number"),
        ("queue: {limit: 10_000}", "queue.limit: 10_000: some programs read this as a number"),
        ("queue: {limit: 1e3}", "queue.limit: 1e3: some programs read this as a number"),
        (f"queue: {{limit: {'9' * 5000}}}", "queue.limit: 999"),
        ("queue: {lease_seconds: .nan}", "queue.lease_seconds: .nan: some programs read this as a number"),
        ("queue: {lease_seconds: fast}", 'queue.lease_seconds: "fast": must be a number'),
        ("queue: {beat_seconds: 0.01}", "queue.beat_seconds: 0.01: must be at least 0.1"),
        (
            "network: {subnet: 10.0.0.1/24}",
            'network.subnet: "10.0.0.1/24": has host bits set; did you mean 10.0.0.0/24?',
        ),
        (
            "network: {subnet: 10.0.0.0/40}",
            'network.subnet: "10.0.0.0/40": not an IPv4 network; write it like 192.168.1.0/',
        ),
        ("worker: {cuda_allocator: a b}", 'worker.cuda_allocator: "a b": not an allocator setting'),
        ("storage: {driver: nsf}", 'storage.driver: "nsf": not one of local, nfs, cephfs; did you mean "nfs"?'),
        (
            "storage: {nfs: {server: a, export: /x, options: A b}}",
            'storage.nfs.options: "A b": not a list of mount opt',
        ),
        ("storage: {cephfs: {}}", "storage.cephfs.path: missing; add it"),
        ("worker: !!python/object:os.system {}", "worker: !!python/object:os.system: tags are not allowed"),
        ("images: {tag: !!str 1}", "images.tag: !!str: tags are not allowed"),
        ("worker: &w {<<: {cpus: 1.0}}", "worker: <<: merge keys are not supported"),
        ("worker: {[a]: b}", "worker: cannot be a key"),
        ("worker: {~: b}", "worker: a key is missing before the colon"),
        ("name: y", "name: given twice, first on line 1; remove one"),
        ("worker: &w [*w]", "*w: refers to itself"),
        ("worker: *w", "*w: there is no &w above"),
        ("---", "a second document starts here; keep one"),
        ("worker: {cpus: " + "x" * 500 + "}", 'worker.cpus: "' + "x" * 59 + '…": must be a number'),
        ('worker: {cuda_allocator: "\\e[31m\\0"}', 'worker.cuda_allocator: "\\u001b[31m\\u0000": not an allocator'),
        ('"\\e[31m": 1', '"\\u001b[31m": unknown key'),
    ],
)
def test_a_wrong_value_is_told_with_line_path_value_and_remedy(tmp_path: Path, added: str, expected: str) -> None:
    problems = refuse(tmp_path, GOOD + added + "\n")
    assert len(problems) == 1
    assert problems[0].startswith(f"cluster.yaml:{LAST + 1}: {expected}")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("GPU-5f0c1a52-8e0b-4d0e-9c1e-6a2f3b4c5d01", "GPU-12", [
            'cluster.yaml:6: hosts.gpu-02.gpus[0].uuid: "GPU-12": not a GPU UUID; run nvidia-smi -L on gpu-02']),
        ("gpu-02", "GPU_02", ["cluster.yaml:3: hosts.GPU_02: not a usable name; use at most 40 lower case"]),
        ("gpu-02", "off", ['cluster.yaml:3: hosts.off: off: as a key is read as false, not as text; write "off" in q']),
        ("[worker]", "[wroker, 3]", [
            'cluster.yaml:5: hosts.gpu-02.roles[0]: "wroker": not one of gateway, control, queue, worker, metrics',
            "cluster.yaml:5: hosts.gpu-02.roles[1]: 3: not one of gateway,"]),
        ("[worker]", "[]", ["cluster.yaml:5: hosts.gpu-02.roles: a list: must not be empty; add at least one"]),
        ("[worker]", "worker", ['cluster.yaml:5: hosts.gpu-02.roles: "worker": must be a list: [one, two]']),
        ("address", "adress", [
            "cluster.yaml:3: hosts.gpu-02.address: missing; add it",
            'cluster.yaml:4: hosts.gpu-02.adress: unknown key; did you mean "address"? (allowed here: addr']),
        ("name: c,", "name: ../c,", ['cluster.yaml:10: models.available[0].name: "../c": not a plain file name']),
        ("checkpoint}", "chekpoint}", ['cluster.yaml:10: models.available[0].kind: "chekpoint": not one of check']),
        ("checkpoint}", "checkpoint, sha256: abc}", ['cluster.yaml:10: models.available[0].sha256: "abc": not a SHA']),
        ("checkpoint}", "checkpoint, source: 'a b'}", ['cluster.yaml:10: models.available[0].source: "a b": not a us']),
        ("gpus: [", "gpus: [" + "{uuid: GPU-5f0c1a52-8e0b-4d0e-9c1e-6a2f3b4c5d01}, " * 16, [
            "cluster.yaml:6: hosts.gpu-02.gpus: a list: has too many entries; at most 16"]),
    ],
)  # fmt: skip
def test_wrong_hosts_and_models(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    problems = refuse(tmp_path, GOOD.replace(old, new))
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)


def test_all_problems_come_at_once_and_in_order(tmp_path: Path) -> None:
    text = GOOD.replace("10.0.0.1", "10.0.0") + "name: y\nfoo: 1\nworker: {cpus: many, threads: 0, first_port: 0x10}\n"
    lines = [int(problem.split(":")[1]) for problem in refuse(tmp_path, text)]
    assert lines == [4, 11, 12, 13, 13, 13]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ["cluster.yaml: the file is empty; write a commented one with: python -m generator init"]),
        ("# nothing\n---\n", ["cluster.yaml: the file is empty"]),
        ("- a\n", ["cluster.yaml:1: must hold keys and values at the top"]),
        ("text\n", ["cluster.yaml:1: text: must hold keys and values at the top"]),
        ("name: x\nhosts: {\n\nmodels: y\n", [
            'cluster.yaml:4: "models: y": not valid YAML: a bracket or brace is not closed (what is being read '
            "here starts on line 2)"]),
        ("name: x: y\n", ['cluster.yaml:1: "name: x: y": not valid YAML: a second colon or a wrong indentation']),
        ("name: 'x\n", ["cluster.yaml:1: \"name: 'x\": not valid YAML: a quote, bracket or brace is not closed"]),
        ("name: @x\n", ['cluster.yaml:1: "name: @x": not valid YAML: text that starts with this character']),
        ("name: x\nfoo\nbar: 1\n", ["cluster.yaml:3: \"bar: 1\": not valid YAML: this line, or the one before"]),
        ("hosts:\n\ta: 1\n\tb: 2\n", [
            'cluster.yaml:2: "a: 1": starts with a tab; YAML allows only spaces for indentation',
            'cluster.yaml:3: "b: 2": starts with a tab; YAML allows only spaces for indentation']),
        ("hosts:\n  a:\n  \tb: 2\n", ['cluster.yaml:3: "b: 2": starts with a tab']),
        ("a: " + "[" * 100_000, ["cluster.yaml:1: nested deeper than 32 levels; is a bracket not closed?"]),
        (b"a: 1\nb: \xff\n", ["cluster.yaml:2: holds bytes that are not UTF-8; save the file as UTF-8"]),
        (b"\x7fELF\0\0", ["cluster.yaml:1: U+007F: control character (a binary file?)"]),
        (b"a: 1\n\0", ["cluster.yaml:2: U+0000: control character (a binary file?)"]),
        ("a: 1\n".encode("utf-16"), ["cluster.yaml: saved as UTF-16; save it as UTF-8"]),
        (b"a: 1\n" * (2 << 20), ["cluster.yaml: larger than 4 MiB; this is not a cluster.yaml, name the right file"]),
    ],
)  # fmt: skip
def test_what_is_no_readable_yaml(tmp_path: Path, content: str | bytes, expected: list[str]) -> None:
    problems = refuse(tmp_path, content)
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD + "#" * (MAX_BYTES - len(GOOD))).cluster.name == "x"


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    loaded = read(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert loaded.marks["models",].line == 7


def test_an_alias_means_its_anchor_and_keeps_its_lines(tmp_path: Path) -> None:
    text = GOOD.replace("    roles: [worker]", "    roles: &r [wroker]") + "worker: {cpus: *r}\n"
    problems = refuse(tmp_path, text)
    assert [problem.split(":")[1] for problem in problems] == ["5", str(LAST + 1)]
    text = GOOD.replace("    roles: [worker]", "    roles: &r [worker]").replace(
        "models:", "  gpu-03: {address: 10.0.0.2, roles: *r}\nmodels:"
    )
    assert read(tmp_path, text).cluster.hosts["gpu-03"].roles == (model.Role.WORKER,)


def test_aliases_cannot_explode(tmp_path: Path) -> None:
    names = [f"a{i}" for i in range(12)]
    bomb = "a0: &a0 [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise(names))
    assert "expands to more than" in refuse(tmp_path, bomb)[-1]
    chain = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000))
    assert "nests deeper than" in refuse(tmp_path, chain)[-1]


def test_the_limits_on_depth_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for depth, words in ((32, "name: a list: must be a single value"), (33, "nested deeper than 32 levels")):
        problems = refuse(tmp_path, GOOD.replace("name: x", f"name: {'[' * depth}{']' * depth}"))
        assert problems == [problem for problem in problems if words in problem]
    monkeypatch.setattr(marks, "MAX_NODES", 30)
    assert read(tmp_path, GOOD).cluster.name == "x"
    monkeypatch.setattr(marks, "MAX_NODES", 29)
    assert "more than 29 values" in refuse(tmp_path, GOOD)[-1]


def test_a_quoted_item_of_a_list_has_its_own_line(tmp_path: Path) -> None:
    loaded = read(tmp_path, GOOD.replace("[worker]", "\n    - worker\n    - 'queue'"))
    assert loaded.marks["hosts", "gpu-02", "roles", 1] == (7, "queue")


def test_a_file_that_is_wrong_everywhere_is_not_told_without_end(tmp_path: Path) -> None:
    problems = refuse(tmp_path, "".join(f"key{i}: 1\n" for i in range(5000)))
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1] == f"cluster.yaml: and {5003 - MAX_PROBLEMS:,} more problems; put these right first"


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root reads everything; as nobody, permission bits count."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_no_permission() -> None:
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # pytest's own folders are closed to nobody, which would hide the point
        Path(folder).chmod(0o755)
        path = Path(folder) / "cluster.yaml"
        path.write_text(GOOD)
        path.chmod(0o644)
        with unprivileged():
            assert load(path).cluster.name == "x"
        path.chmod(0)
        with (
            unprivileged(),
            pytest.raises(UserError, match=r"cluster.yaml: no permission to read it; run as its owner"),
        ):
            load(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(GOOD)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, words in (
        ("missing.yaml", "no such file; write a commented one with: python -m generator init"),
        (".", "this is a folder"),
        ("file/x", "a part of this path is a file"),
        ("pipe", "not a regular file"),
        ("loop", "cannot be read (Too many levels of symbolic links)"),
        ("a\0b", "cannot be read (embedded null byte)"),
        ("x" * 5000, "cannot be read (File name too long)"),
    ):
        with pytest.raises(UserError) as caught:
            load(tmp_path / name)
        assert words in str(caught.value)
    with pytest.raises(UserError, match="not a regular file"):
        load(Path("/dev/zero"))


def test_any_bytes_give_a_cluster_or_a_user_error(tmp_path: Path) -> None:
    """A seeded walk around a valid file: cut, double, swap, and throw in what YAML finds special."""
    chance = random.Random(7)
    spice = rb"\t|&a |*a|[|{|}|: |- |'|~|!!x |? |<<: |%|1e999|0b1|\ud800|#|...".split(b"|")
    spice += [b'"\\', b"|\n", b"---\n", b"\xff", b"\0", b"\xe2\x80\xa8", b"\t", b"\r"]
    loaded = refused = 0
    for _ in range(1500):
        content = bytearray(GOOD.encode())
        for _ in range(chance.randint(1, 4)):
            start, end = sorted(chance.sample(range(len(content) + 1), 2))
            piece = content[start:end]
            replacement = chance.choice([b"", piece * 2, piece[::-1], chance.choice(spice), chance.randbytes(3)])
            content[start : start + chance.choice([0, 1, end - start])] = replacement
        with suppress(UserError):
            refused += 1
            read(tmp_path, bytes(content))
            refused -= 1
            loaded += 1
    assert loaded > 5
    assert refused > 1000


def test_the_pure_python_parser_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        GOOD,
        GOOD + "images: {tag: 0.10}\n",
        GOOD + 'images: {tag: "0.10"}\nworker: !!x {}\n',
        GOOD + "a: !x 'b'\n",
    ]

    def results() -> list[Any]:
        found: list[Any] = []
        for text in texts:
            try:
                found.append(read(tmp_path, text))
            except UserError as error:
                found.append(str(error))
        return found

    fast = results()
    monkeypatch.setattr(marks, "LOADER", yaml.SafeLoader)
    assert results() == fast
    with pytest.raises(UserError, match=r"images\.tag"):
        read(tmp_path, GOOD + 'images: {tag: "\\ud800"}\n')


def test_every_pattern_of_the_model_has_words() -> None:
    def patterns(schema: object) -> Iterator[str]:
        if isinstance(schema, dict):
            for key, value in schema.items():
                if key == "pattern" and isinstance(value, str):
                    yield value
                elif key == "patternProperties":
                    yield from value
                yield from patterns(value)
        elif isinstance(schema, list):
            for item in schema:
                yield from patterns(item)

    found = {pattern for pattern in patterns(model.Cluster.model_json_schema()) if pattern.startswith("^")}
    assert found == set(explain.PATTERN_HINTS)
