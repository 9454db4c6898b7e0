"""So much of Elasticsearch as our parts use of it, over TLS: users, roles and keys count, bodies are read strictly, and
what is created in a data stream is recorded as it came."""

from __future__ import annotations

import base64
import json
import re
import secrets
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import bcrypt
import yaml

from tests.integration.elasticsearch_documents import Refused, accepted, search

VERSION = "9.2.1"
STREAM = re.compile(r"logs-animatediff-[a-z]+")
Answer = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class Caller:
    name: str
    roles: tuple[Mapping[str, Any], ...]
    is_key: bool = False

    def may(self, *, cluster: str = "", index: str = "", on: str = "") -> bool:
        """Whether some role has the privilege; `manage` of an index is more than its creation, as with the original."""
        for role in self.roles:
            if cluster and cluster in role.get("cluster", ()):
                return True
            for grant in role.get("indices", ()) if index else ():
                fits = any(re.fullmatch(name.replace("*", ".*"), on) for name in grant["names"])
                if fits and index in grant["privileges"]:
                    return True
        return False


@dataclass
class Store:
    """The state: what a test looks at."""

    users: dict[str, bytes]
    roles: dict[str, Any]
    users_roles: dict[str, list[str]]
    lifecycles: dict[str, Any] = field(default_factory=dict)
    templates: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    streams: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    busy: int = 0
    """So many requests get 503 first."""
    product: bool = True
    shards_failed: int = 0

    def who(self, header: str) -> Caller | None:
        kind, _, value = header.partition(" ")
        try:
            name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except ValueError:
            return None
        if kind == "ApiKey":
            key = self.keys.get(name)
            good = key and not key["invalidated"] and secrets.compare_digest(key["secret"], password)
            return Caller(name, tuple(key["roles"].values()), is_key=True) if key and good else None
        hashed = self.users.get(name)
        if kind != "Basic" or not hashed or not bcrypt.checkpw(password.encode(), hashed):
            return None
        held = [role for role, names in self.users_roles.items() if name in names]
        return Caller(name, tuple(self.roles[role] for role in held))


def read_store(config: Path, users: str) -> Store:
    """From the files that Elasticsearch reads itself."""
    pairs = [line.split(":") for line in (config / "users_roles").read_text().splitlines()]
    return Store(
        users={name: value.encode() for name, _, value in (line.partition(":") for line in users.splitlines())},
        roles=yaml.safe_load((config / "roles.yml").read_text()),
        users_roles={role: names.split(",") for role, names in pairs},
    )


class Door:
    """The calls, by method and path; each says which privilege it needs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.routes: list[tuple[str, str, Callable[..., Answer]]] = [
            ("GET", r"/", self._hello),
            ("GET", r"/_cluster/health|/_cat/health", self._health),
            ("PUT", r"/_ilm/policy/([a-z]+)", self._lifecycle),
            ("PUT", r"/_index_template/([a-z]+)", self._template),
            ("GET", r"/_security/api_key", self._list_keys),
            ("POST|PUT", r"/_security/api_key", self._make_key),
            ("DELETE", r"/_security/api_key", self._end_keys),
            ("POST|PUT", r"/_bulk", self._bulk),
            ("POST", r"/([a-z*-]+)/_search", self._search),
        ]

    def answer(self, method: str, target: str, header: str, body: bytes) -> Answer:
        split = urlsplit(target)
        self.store.requests.append(f"{method} {split.path}")
        if self.store.busy:
            self.store.busy -= 1
            return failure(503, "cluster_block_exception", "state not recovered / initialized")
        caller = self.store.who(header)
        if caller is None:
            return failure(401, "security_exception", "missing or wrong credentials")
        for verb, pattern, call in self.routes:
            found = re.fullmatch(pattern, split.path)
            if found and re.fullmatch(verb, method):
                query = {name: values[0] for name, values in parse_qs(split.query).items()}
                try:
                    return call(caller, query, body, *found.groups())
                except Refused as error:
                    return failure(400, error.kind, error.reason)
        return failure(400, "illegal_argument_exception", f"no handler found for {method} {split.path}")

    def _hello(self, caller: Caller, query: Mapping[str, str], body: bytes) -> Answer:
        version = {"number": VERSION, "build_flavor": "default"}
        return need(caller.may(cluster="monitor"), {"version": version, "tagline": "You Know, for Search"})

    def _health(self, caller: Caller, query: Mapping[str, str], body: bytes) -> Answer:
        return need(caller.may(cluster="monitor"), {"status": "green", "timed_out": False})

    def _lifecycle(self, caller: Caller, query: Mapping[str, str], body: bytes, name: str) -> Answer:
        if caller.may(cluster="manage_ilm"):
            self.store.lifecycles[name] = only(parsed(body), {"policy"})["policy"]
        return need(caller.may(cluster="manage_ilm"), {"acknowledged": True})

    def _template(self, caller: Caller, query: Mapping[str, str], body: bytes, name: str) -> Answer:
        if caller.may(cluster="manage_index_templates"):
            known = {"index_patterns", "data_stream", "priority", "template"}
            self.store.templates[name] = only(parsed(body), known)
        return need(caller.may(cluster="manage_index_templates"), {"acknowledged": True})

    def _list_keys(self, caller: Caller, query: Mapping[str, str], body: bytes) -> Answer:
        keys = [
            {name: key[name] for name in ("id", "name", "invalidated")}
            for key in self.store.keys.values()
            if key["owner"] == caller.name and not (query.get("active_only") == "true" and key["invalidated"])
        ]
        allowed = caller.may(cluster="manage_own_api_key") and query.get("owner") == "true"
        return need(allowed, {"api_keys": keys})

    def _make_key(self, caller: Caller, query: Mapping[str, str], body: bytes) -> Answer:
        wanted = only(parsed(body), {"name", "role_descriptors", "metadata", "expiration"})
        for role in wanted["role_descriptors"].values():
            lacking = [name for name in role["cluster"] if not caller.may(cluster=name)]
            for grant in role["indices"]:
                pairs = [(name, on.replace("*", "x")) for name in grant["privileges"] for on in grant["names"]]
                lacking += [name for name, on in pairs if not caller.may(index=name, on=on)]
            if lacking:  # the original makes such a key, and it may not do that
                return failure(400, "nothing_of_use", f"the key would be without {lacking}")
        if not caller.may(cluster="manage_own_api_key"):
            return need(False, {})
        key = {"id": uuid.uuid4().hex[:20], "name": wanted["name"], "secret": secrets.token_urlsafe(16)}
        more = {"roles": wanted["role_descriptors"], "owner": caller.name, "invalidated": False}
        self.store.keys[key["id"]] = {**key, **more}
        return 200, {"id": key["id"], "name": key["name"], "api_key": key["secret"]}

    def _end_keys(self, caller: Caller, query: Mapping[str, str], body: bytes) -> Answer:
        wanted = only(parsed(body), {"owner", "ids"})
        if not (caller.may(cluster="manage_own_api_key") and wanted["owner"] is True):
            return need(False, {})
        for identity in wanted["ids"]:
            self.store.keys[identity]["invalidated"] = True
        return 200, {"invalidated_api_keys": wanted["ids"], "error_count": 0}

    def _bulk(self, caller: Caller, query: Mapping[str, str], body: bytes) -> Answer:
        if not body.endswith(b"\n"):
            raise Refused("illegal_argument_exception", "The bulk request must be terminated by a newline [\\n]")
        lines = body.decode().splitlines()
        items = [self._item(caller, action, document) for action, document in zip(lines[::2], lines[1::2], strict=True)]
        errors = any(next(iter(item.values()))["status"] >= 300 for item in items)
        return 200, {"took": 1, "errors": errors, "items": items}

    def _item(self, caller: Caller, action: str, document: str) -> dict[str, Any]:
        ((kind, meta),) = parsed(action.encode()).items()
        stream = meta.get("_index", "")
        try:
            if not STREAM.fullmatch(stream):
                raise Refused("index_not_found_exception", f"no such index [{stream}]")
            if kind != "create":
                raise Refused("illegal_argument_exception", "only write ops with an op_type of create are allowed")
            if not caller.may(index="create_doc", on=stream):
                raise Refused("security_exception", f"{caller.name} may not", 403)
            if stream not in self.store.streams and not caller.may(index="auto_configure", on=stream):
                raise Refused("security_exception", f"{caller.name} may not create the data stream", 403)
            (template,) = self.store.templates.values()
            source = parsed(document.encode())
            accepted(template["template"]["mappings"], source)
        except Refused as error:
            return {kind: {"_index": stream, "status": error.status, "error": error.as_dict()}}
        self.store.streams.setdefault(stream, []).append(source)
        return {kind: {"_index": f".ds-{stream}-000001", "_id": uuid.uuid4().hex, "status": 201, "result": "created"}}

    def _search(self, caller: Caller, query: Mapping[str, str], body: bytes, pattern: str) -> Answer:
        if not caller.may(index="read", on=pattern.replace("*", "x")):
            return need(False, {})
        fitting = [name for name in self.store.streams if re.fullmatch(pattern.replace("*", ".*"), name)]
        documents = [one for name in fitting for one in self.store.streams[name]]
        shards = {"total": 2, "successful": 2 - self.store.shards_failed, "failed": self.store.shards_failed}
        return 200, {"took": 1, "timed_out": False, "_shards": shards, "hits": search(parsed(body), documents)}


def parsed(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise Refused("parsing_exception", str(error)) from error
    if not isinstance(found, dict):
        raise Refused("parsing_exception", "expected an object")
    return found


def only(body: dict[str, Any], known: set[str]) -> dict[str, Any]:
    if unknown := body.keys() - known:
        raise Refused("x_content_parse_exception", f"unknown field {sorted(unknown)}")
    return body


def need(allowed: bool, answer: dict[str, Any]) -> Answer:
    return (200, answer) if allowed else failure(403, "security_exception", "action is unauthorized for this user")


def failure(status: int, kind: str, reason: str) -> Answer:
    cause = {"type": kind, "reason": reason}
    return status, {"status": status, "error": {**cause, "root_cause": [cause]}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    door: Door

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        status, answer = self.door.answer(self.command, self.path, self.headers.get("Authorization", ""), body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        if self.door.store.product:
            self.send_header("X-Elastic-Product", "Elasticsearch")
        wanted = self.headers.get("Accept", "")
        compatible = "application/vnd.elasticsearch+json;compatible-with=9"
        self.send_header("Content-Type", compatible if "vnd.elasticsearch" in wanted else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Tests look at `Store.requests`."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up, or does not trust us, is no error of ours."""


@contextmanager
def serving(store: Store, pair: tuple[Path, Path], address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[int]:
    """The port that it listens on. `pair`: certificate and key."""
    handler = type("Bound", (Handler,), {"door": Door(store)})
    server = Server(address, handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*map(str, pair))
    # The handshake belongs to the request's thread: one that never ends must not keep others out.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
