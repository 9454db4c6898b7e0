"""In the place of Elastic's programs, within containers as they are rendered: each reads its real configuration where
the original would, needs what that needs (folders, users, certificates, memory that may be executed), and does what the
configuration says. So everything of a cluster's logs is tried out but the originals themselves."""

from __future__ import annotations

import base64
import glob
import hashlib
import http.server
import itertools
import json
import os
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.contract.log_filters import Event, filtered, shipped
from tests.contract.logstash_grammar import Plugin, Section, parse
from tests.integration.elasticsearch_sink import read_store, serving

CONFIG = "/etc/appliance-filebeat/filebeat.yml"


def main(name: str, arguments: list[str]) -> None:
    run = {"elasticsearch": elasticsearch, "logstash": logstash, "filebeat": filebeat}
    print(json.dumps({"log.level": "INFO", "message": f"{name} begins"}), flush=True)
    run[name](arguments)


def elasticsearch(arguments: list[str]) -> None:
    assert not arguments
    folder = Path(os.environ["ES_PATH_CONF"])
    settings = yaml.safe_load((folder / "elasticsearch.yml").read_text())
    (folder / "elasticsearch.keystore").write_text("made at the first start")
    assert "Xlog:gc" not in (folder / "jvm.options").read_text()
    assert (folder / "log4j2.properties").exists(), "of the image"
    must_be_writable(settings["path.data"], settings["path.logs"])
    must_run_what_lies_in("/tmp")
    tls = settings["xpack.security.http.ssl"]
    store = read_store(folder, (folder / "users").read_text())
    with serving(store, (folder / tls["certificate"], folder / tls["key"]), (settings["http.host"], 9200)):
        threading.Event().wait()


def logstash(arguments: list[str]) -> None:
    option, folder = arguments
    assert option == "--path.settings"
    settings = yaml.safe_load((Path(folder) / "logstash.yml").read_text())
    assert (Path(folder) / "log4j2.properties").exists(), "of the image"
    must_be_writable(settings["path.data"])
    must_run_what_lies_in("/tmp")
    (beats,) = pipeline(settings)[0].statements
    context = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cafile=beats.options["ssl_certificate_authorities"][0]
    )
    context.load_cert_chain(beats.options["ssl_certificate"], beats.options["ssl_key"])
    if beats.options["ssl_client_authentication"] == "required":
        context.verify_mode = ssl.CERT_REQUIRED

    class Batch(socketserver.StreamRequestHandler):
        """Lines of JSON up to an empty one; answered when Elasticsearch has them."""

        def setup(self) -> None:
            self.request.settimeout(60)
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def handle(self) -> None:
            for lines in iter(lambda: list(itertools.takewhile(bytes.strip, self.rfile)), []):
                hand_over(settings, [json.loads(line) for line in lines])
                self.wfile.write(b"ok\n")

    answer_health("127.0.0.1", settings["api.http.port"])
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("0.0.0.0", beats.options["port"]), Batch) as server:
        server.serve_forever()


def pipeline(settings: dict[str, Any]) -> tuple[Section, ...]:
    first, rest = settings["path.config"].removeprefix("{").split("}")
    files = sorted(file for folder in first.split(",") for file in glob.glob(folder + rest))
    return tuple(section for file in files for section in parse(Path(file).read_text()))


def hand_over(settings: dict[str, Any], events: list[Event]) -> None:
    """Until it is taken, by whatever key the pipeline has by then."""
    while True:
        sections = pipeline(settings)
        documents = [one for event in events if (one := filtered(sections, event)) is not None]
        (output,) = sections[-1].statements
        if not documents or taken(output, documents):
            return
        time.sleep(0.5)


def taken(output: Plugin, documents: list[Event]) -> bool:
    options = output.options
    stream = "-".join(options[f"data_stream_{part}"] for part in ("type", "dataset", "namespace"))
    lines = [line for one in documents for line in (json.dumps({"create": {"_index": stream}}), json.dumps(one))]
    key = base64.b64encode(options["api_key"].encode()).decode()
    headers = {"Authorization": f"ApiKey {key}", "Content-Type": "application/json"}
    body = ("\n".join(lines) + "\n").encode()
    request = urllib.request.Request(f"{options['hosts'][0]}/_bulk", data=body, headers=headers)  # noqa: S310
    trusted = ssl.create_default_context(cafile=options["ssl_certificate_authorities"][0])
    try:
        with urllib.request.urlopen(request, timeout=10, context=trusted) as answer:  # noqa: S310
            found = json.loads(answer.read())
    except OSError as error:  # not there, or refused
        print(json.dumps({"level": "WARN", "logEvent": {"message": f"not taken: {error}"}}), flush=True)
        return False
    assert not found["errors"], found
    return True


def filebeat(arguments: list[str]) -> None:
    assert arguments == ["-e", "--strict.perms=false", "-c", CONFIG]
    config = yaml.safe_load(Path(CONFIG).read_text())
    registry = Path("/usr/share/filebeat/data/registry.json")
    read: dict[str, int] = json.loads(registry.read_text()) if registry.exists() else {}
    answer_health(config["http"]["host"], config["http"]["port"])
    while True:
        for fingerprint, offset, text in news(config["filebeat.inputs"][0], read):
            events = shipped(config, text.decode().splitlines(), fingerprint, offset)
            send(config["output.logstash"], [json.dumps(event) for event in events])
            read[fingerprint] = offset + len(text)
            registry.write_text(json.dumps(read))
        time.sleep(0.5)


def news(source: dict[str, Any], read: dict[str, int]) -> Iterator[tuple[str, int, bytes]]:
    length = source["prospector.scanner"]["fingerprint"]["length"]
    for pattern in source["paths"]:
        for file in glob.glob(pattern):
            try:
                content = Path(file).read_bytes()
            except FileNotFoundError:
                continue
            fingerprint = hashlib.sha256(content[:length]).hexdigest()
            offset, end = read.get(fingerprint, 0), content.rfind(b"\n") + 1
            if len(content) >= length and end > offset:
                yield fingerprint, offset, content[offset:end]


def send(output: dict[str, Any], lines: list[str]) -> None:
    """Until somebody has them."""
    tls = output["ssl"]
    context = ssl.create_default_context(cafile=tls["certificate_authorities"][0])
    context.load_cert_chain(tls["certificate"], tls["key"])
    while lines:
        host, _, port = output["hosts"][0].rpartition(":")
        try:
            with socket.create_connection((host, int(port)), 5) as plain:
                plain.settimeout(60)
                with context.wrap_socket(plain, server_hostname=host) as secure:
                    secure.sendall(("\n".join(lines) + "\n\n").encode())
                    if secure.recv(3) == b"ok\n":
                        return
        except OSError as error:
            print(json.dumps({"log.level": "warn", "message": f"nobody takes it: {error}"}), flush=True)
        time.sleep(0.5)


def answer_health(address: str, port: int) -> None:
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Every five seconds would be too often."""

    server = http.server.ThreadingHTTPServer((address, port), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def must_be_writable(*folders: str) -> None:
    for folder in folders:
        (Path(folder) / "written").write_text("x")


def must_run_what_lies_in(folder: str) -> None:
    """As Java does with its own libraries."""
    program = Path(folder) / "program"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o700)
    subprocess.run([str(program)], check=True, timeout=5)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
