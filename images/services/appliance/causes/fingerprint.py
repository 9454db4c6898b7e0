"""Which failures are the same one: ordered rules first (reason, Xid, symptom, place in the code), and templates of the
messages, mined by drain3, only for what no rule knows. Pure.

The numbers that make another failure (an Xid, a signal, an exit code) are taken by rules: no mask may merge Xid 79, a
GPU that is gone, with Xid 13, a program's own mistake.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from drain3.drain import Drain, LogCluster

from appliance.causes.outcome import Outcome, plain
from appliance.job import Reason

TITLE_CHARS: Final = 160
TEMPLATE_CHARS: Final = 240
TEMPLATE_WORDS: Final = 24
MOST_TEMPLATES: Final = 100
MOST_MINED: Final = 5000
"""Different messages, masked; of what comes later all is one group."""
MOST_UNKNOWN: Final = 1000
XID: Final = re.compile(r"xid(?:\s*\(pci:[0-9a-f:.]{4,20}\))?(?:\s+error)?[\s:=#]*(\d{1,3})\b")
XIDS_OF_LOST_GPUS: Final = frozenset({48, 64, 74, 79, 95, 119, 120})


@dataclass(frozen=True)
class Rule:
    """`title` may hold what the pattern's group has found, as {}. `means` is the reason of a failure that came as
    UNKNOWN; `only` the one that it is about. Patterns, as XID, are looked for in lower case: ignoring case costs more
    than all the rest."""

    symptom: str
    title: str
    pattern: re.Pattern[str]
    means: Reason | None = None
    only: Reason | None = None


def _rule(symptom: str, title: str, pattern: str, means: Reason | None = None, only: Reason | None = None) -> Rule:
    return Rule(symptom, title, re.compile(pattern), means, only)


RULES: Final = (
    _rule("assert", "device-side assert on the GPU", r"device-side assert", Reason.CUDA_ERROR),
    _rule("address", "bad address on the GPU", r"illegal memory access|misaligned address", Reason.CUDA_ERROR),
    _rule("bus", "the GPU has fallen off the bus", r"fallen off the bus|gpu is lost", Reason.GPU_LOST),
    _rule("ecc", "uncorrectable memory error of the GPU", r"uncorrectable ecc|double.bit ecc", Reason.GPU_LOST),
    _rule(
        "no-gpu", "no GPU is there", r"no cuda gpus are available|no cuda-capable device|sees no gpu", Reason.GPU_LOST
    ),
    _rule("gpu-memory", "out of GPU memory", r"out of (?:gpu )?memory|alloc_failed", Reason.OOM),
    _rule("library", "{} failed on the GPU", r"\b(cublas|cudnn|cufft|cusolver|cusparse|nccl)", Reason.CUDA_ERROR),
    _rule("launch", "a kernel failed on the GPU", r"launch (?:failure|timed out)|cuda error", Reason.CUDA_ERROR),
    _rule("killed", "the engine was killed, most likely for its memory", r"killed by sigkill", Reason.HOST_OOM),
    _rule(
        "host-memory", "out of main memory", r"defaultcpuallocator|cannot allocate memory|bad_alloc", Reason.HOST_OOM
    ),
    _rule("signal", "the engine died of {}", r"process died of (sig[a-z0-9]{2,8})"),
    _rule("exit", "the engine ended with exit code {}", r"exit code (\d{1,3})\b"),
    _rule("nan", "the model produced NaN", r"\bnan\b|infinite pixels"),
    _rule("disk", "no space left on the disk", r"no space left on device|disk quota exceeded"),
    _rule("phase", "no progress in phase {}", r"no progress in phase (\w{1,16})"),
    _rule("too-long", "the attempt took too long", r"the attempt took longer than", only=Reason.TIMEOUT),
    _rule("late-running", "the deadline passed while it ran", r"deadline passed while", only=Reason.TIMEOUT),
    _rule("late-waiting", "the deadline passed in the line", r"deadline passed before", only=Reason.TIMEOUT),
    _rule("heartbeat", "the worker sent no heartbeat", r"sent no heartbeat", only=Reason.WORKER_LOST),
    _rule(
        "restarted", "the agent started again", r"its agent (?:started again|does not know)", only=Reason.WORKER_LOST
    ),
    _rule("silent", "the webui said nothing more", r"the webui said nothing", only=Reason.WORKER_LOST),
    _rule("stream", "the webui broke off", r"the webui's stream|the webui sent", only=Reason.WORKER_LOST),
    _rule("no-file", "a model file is not there", r"does not exist|no such file", only=Reason.MODEL_LOAD_FAIL),
    _rule(
        "bad-file",
        "a model file is damaged",
        r"safetensors file|is not json|holds no json",
        only=Reason.MODEL_LOAD_FAIL,
    ),
    _rule("misfit", "models do not fit together", r"do not match|lacks |is a \w+, not", only=Reason.MODEL_LOAD_FAIL),
)
PLAIN: Final = {
    Reason.OOM: "out of GPU memory",
    Reason.HOST_OOM: "out of main memory",
    Reason.TIMEOUT: "it took too long",
    Reason.MODEL_LOAD_FAIL: "a model could not be loaded",
    Reason.CUDA_ERROR: "the GPU reported an error",
    Reason.GPU_LOST: "the GPU is gone",
    Reason.WORKER_LOST: "the worker was lost",
    Reason.INVALID_INPUT: "the request cannot be run",
    Reason.CANCELLED: "cancelled",
    Reason.UNKNOWN: "something that no rule knows",
}


@dataclass(frozen=True)
class Fingerprint:
    """What equal failures have in common. `template` only where no rule knew the failure."""

    reason: Reason
    xid: int | None
    symptom: str
    where: str
    title: str
    template: str = ""

    @property
    def key(self) -> str:
        """12 hexadecimal digits, the same for the same failure tomorrow; a template may still change its words."""
        parts = (self.reason.value, str(self.xid or ""), self.symptom, self.where, self.template)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:12]


class Unknown:
    """Something that no rule knew. Its template may grow more general until all messages were read."""

    def __init__(self, where: str, cluster: LogCluster | None) -> None:
        self._where = where
        self._cluster = cluster

    def settle(self) -> Fingerprint:
        template = (
            plain(self._cluster.get_template(), TEMPLATE_CHARS) if self._cluster else "(too many kinds to tell apart)"
        )
        return Fingerprint(Reason.UNKNOWN, None, "", self._where, plain(template, TITLE_CHARS), template)


class Fingerprinter:
    """Reads failures one by one. Equal answers are equal failures; an `Unknown` is settled when all are read."""

    def __init__(self) -> None:
        self._drain = Drain(depth=4, sim_th=0.5, max_children=20, max_clusters=MOST_TEMPLATES)
        self._mined: dict[str, LogCluster] = {}
        self._unknown: dict[tuple[str, int], Unknown] = {}

    def read(self, failure: Outcome) -> Fingerprint | Unknown:
        known = by_rules(failure)
        return known if known is not None else self._mine(failure)

    def _mine(self, failure: Outcome) -> Unknown:
        masked = mask(failure.message)
        cluster = self._mined.get(masked)
        if cluster is None and len(self._mined) < MOST_MINED:
            cluster, _ = self._drain.add_log_message(masked)
            self._mined[masked] = cluster
        key = (plain(failure.where, 100), cluster.cluster_id) if cluster else ("", 0)
        if key not in self._unknown and len(self._unknown) >= MOST_UNKNOWN:
            key, cluster = ("", 0), None
        return self._unknown.setdefault(key, Unknown(key[0], cluster))


def by_rules(failure: Outcome) -> Fingerprint | None:
    """None for an UNKNOWN failure that nothing is known of."""
    reason, said = failure.reason or Reason.UNKNOWN, failure.message.lower()
    if found := XID.search(said):
        xid = int(found[1])
        lost = Reason.GPU_LOST if xid in XIDS_OF_LOST_GPUS else Reason.CUDA_ERROR
        return _known(failure, lost if reason is Reason.UNKNOWN else reason, "xid", f"Xid {xid}", xid)
    for rule in RULES:
        if rule.only in (None, reason) and (found := rule.pattern.search(said)):
            what = found[1] if rule.pattern.groups else ""
            meant = rule.means if rule.means and reason is Reason.UNKNOWN else reason
            shown = what.upper() if rule.symptom in ("signal", "library") else what
            return _known(failure, meant, f"{rule.symptom} {what}".strip(), rule.title.format(shown))
    return None if reason is Reason.UNKNOWN else _known(failure, reason, "", PLAIN[reason])


def _known(failure: Outcome, reason: Reason, symptom: str, title: str, xid: int | None = None) -> Fingerprint:
    return Fingerprint(reason, xid, symptom, plain(failure.where, 100), title)


_MASKS: Final = (
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"'[^']{0,200}'|\"[^\"]{0,200}\""), "<text>"),
    (re.compile(r"(?<![\w.])/[\w.+@/-]{2,200}"), "<path>"),
    (re.compile(r"\b0x[0-9a-f]{1,16}\b|\b[0-9a-f]{12,64}\b", re.IGNORECASE), "<hex>"),
    (re.compile(r"\d+(?:[.:]\d+)*"), "<number>"),
)


def mask(message: str) -> str:
    """The message as the miner reads it: what differs each time is named by its kind."""
    text = plain(message, TEMPLATE_CHARS)
    for pattern, name in _MASKS:
        text = pattern.sub(name, text)
    return " ".join(text.split()[:TEMPLATE_WORDS])
