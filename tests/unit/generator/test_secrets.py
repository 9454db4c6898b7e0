from __future__ import annotations

import hashlib
import os
import ssl
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import bcrypt
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from generator import certificates
from generator.errors import UserError
from generator.plan import plan
from generator.secrets import PLAIN, Store, for_host, lay_out, logs_names, monitoring_names, redis_names
from tests.unit.generator.clusters import (
    logged,
    logged_alone,
    monitored,
    monitored_alone,
    one_host,
    three_hosts,
    with_dashboards,
)

UID = 10001 if os.geteuid() == 0 else os.geteuid()
"""Only root may give a file away."""
NAMES = ("video.example.lan", "192.168.1.10")


def store(folder: Path, *, tls: bool = True) -> Store:
    made = Store(folder / "secrets")
    made.create_missing(NAMES, tls=tls, **host_names())
    return made


def host_names() -> dict[str, dict[str, tuple[str, ...]]]:
    """Of the certificates of three hosts."""
    return {"redis": redis_names(plan(three_hosts())), "monitoring": monitoring_names(plan(monitored())),
            "logs": logs_names(plan(logged())) | logs_names(plan(logged_alone()))}  # fmt: skip


def test_made_once_and_private(tmp_path: Path) -> None:
    first = store(tmp_path)
    values = first.read()
    assert first.create_missing(NAMES, tls=True, **host_names()) == []
    assert first.read() == values
    assert len(set(values.values())) == len(values)
    assert all(len(values[name]) >= 43 for name in PLAIN)
    assert stat.S_IMODE(first.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in first.folder.iterdir()} == {0o600}


def test_each_host_gets_only_what_its_services_mount(tmp_path: Path) -> None:
    values = store(tmp_path).read()
    the_plan = plan(three_hosts())
    worker_only = for_host(the_plan.by_name["gpu-03"], values)
    assert {"api_keys", "tls.key", "cluster_token.nginx"}.isdisjoint(worker_only)
    assert {"redis_password", "cluster_token"} <= worker_only.keys()
    gateway = for_host(the_plan.by_name["gpu-01"], values)
    assert gateway["cluster_token.nginx"] == b'proxy_set_header Authorization "Bearer %s";\n' % values["cluster_token"]
    digest = hashlib.sha256(values["api_key"]).hexdigest()
    assert gateway["api_keys"] == f"operator:operator:{digest}\n".encode()
    assert not any(values["api_key"] in content for content in gateway.values()), "hosts know only the key's hash"


def test_a_host_of_monitoring_alone_gets_no_password(tmp_path: Path) -> None:
    the_plan = plan(three_hosts())
    alone = replace(the_plan.by_name["gpu-03"], queue=None, workers=(), exporter=None)
    assert for_host(alone, store(tmp_path).read()) == {}


def test_every_secret_a_service_mounts_exists(tmp_path: Path) -> None:
    import yaml

    from generator.render import render
    from generator.sources import read_sources

    values = store(tmp_path).read()
    for cluster in (
        one_host(),
        three_hosts(),
        monitored(),
        monitored_alone(),
        with_dashboards(),
        logged(),
        logged_alone(),
    ):
        the_plan = plan(cluster)
        for name, files in render(the_plan, read_sources()):
            wanted = {f"./secrets/{secret}" for secret in for_host(the_plan.by_name[name], values)}
            compose = yaml.safe_load(files["compose.yaml"])
            mounted = {secret["file"] for secret in compose["secrets"].values()}
            volumes = [volume["source"] for one in compose["services"].values() for volume in one.get("volumes", ())]
            folders = {source for source in volumes if source.startswith("./secrets/")}
            inside = {place for place in wanted if place.rpartition("/")[0] in folders}
            assert inside == ({"./secrets/tls/tls.crt", "./secrets/tls/tls.key"} if folders else set())
            assert mounted == wanted - inside, name


def test_laid_out_private_for_the_containers_user_and_pruned(tmp_path: Path) -> None:
    values = store(tmp_path).read()
    lay_out(plan(one_host()), tmp_path, values, uid=UID)
    folder = tmp_path / "demo/secrets"
    (folder / "old").write_text("stale")
    inode = (folder / "redis_password").stat().st_ino
    lay_out(plan(one_host()), tmp_path, values, uid=UID)
    assert not (folder / "old").exists()
    assert (folder / "redis_password").stat().st_ino == inode, "an unchanged file is left alone: it may be mounted"
    assert {(stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) for path in folder.iterdir()} == {(0o600, UID)}


def test_the_gateways_pair_lies_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """nginx sees the folder, so a certificate made anew counts without another container; nothing else lies in it."""
    made = store(tmp_path)
    lay_out(plan(three_hosts()), tmp_path, made.read(), uid=UID)
    folder = tmp_path / "gpu-01/secrets/tls"
    assert {path.name for path in folder.iterdir()} == {"tls.crt", "tls.key"}
    assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_uid) == (0o700, UID)
    before = folder.stat().st_ino, (folder / "tls.crt").read_bytes()
    made.create_missing(("new.example.net",), tls=True)
    lay_out(plan(three_hosts()), tmp_path, made.read(), uid=UID)
    assert folder.stat().st_ino == before[0], "a mounted folder stays the same one"
    assert (folder / "tls.crt").read_bytes() != before[1]
    elsewhere = {"tls": {"mode": "files", "certificate": "/etc/video/a.crt", "key": "/etc/video/a.key"}}
    lay_out(plan(three_hosts(gateway=elsewhere)), tmp_path, made.read(), uid=UID)
    assert list(folder.iterdir()) == [], "what is no longer mounted does not stay"


def test_rotate_changes_one_and_all_that_follows_from_it(tmp_path: Path) -> None:
    made = store(tmp_path)
    before = made.read()
    host = plan(one_host()).hosts[0]
    made.rotate("cluster_token")
    after = made.read()
    assert {name for name in before if before[name] != after[name]} == {"cluster_token"}
    old, new = for_host(host, before), for_host(host, after)
    assert {name for name in old if old[name] != new[name]} == {"cluster_token", "cluster_token.nginx"}
    with pytest.raises(UserError, match='"nothing" is not a secret'):
        made.rotate("nothing")


def test_a_missing_secret_is_told(tmp_path: Path) -> None:
    made = store(tmp_path)
    (made.folder / "api_key").unlink()
    with pytest.raises(UserError, match="api_key: missing; run"):
        made.read()


def test_a_person_without_the_right_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="secrets"):
        Store(Path("/proc/secrets")).create_missing(("x",), tls=False)


def test_the_certificate_is_for_every_name_and_verifies(tmp_path: Path) -> None:
    values = store(tmp_path).read()
    leaf, authority = x509.load_pem_x509_certificates(values["tls.crt"])
    leaf.verify_directly_issued_by(authority)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["video.example.lan"]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca, "it must not sign others"
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.168.1.10"]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "secrets/tls.crt", tmp_path / "secrets/tls.key")


def test_a_strict_client_accepts_the_certificate(tmp_path: Path) -> None:
    """As Python 3.13 does by default: it insists on the key identifiers of RFC 5280."""
    values = store(tmp_path).read()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "secrets/tls.crt", tmp_path / "secrets/tls.key")
    client = ssl.create_default_context(cadata=(tmp_path / "secrets/ca.crt").read_text())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(back, there, server_hostname="video.example.lan")
    answering = server.wrap_bio(there, back, server_side=True)
    for side in (asking, answering, asking, answering):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert asking.version() == "TLSv1.3"
    assert values["tls.crt"].endswith((tmp_path / "secrets/ca.crt").read_bytes())


def test_another_authority_does_not_verify(tmp_path: Path) -> None:
    leaf = x509.load_pem_x509_certificate(store(tmp_path).read()["tls.crt"])
    _, stranger = certificates.make_authority()
    with pytest.raises(InvalidSignature):
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(stranger))


def test_who_keeps_lines_knows_hashes_and_who_ships_them_no_password_at_all(tmp_path: Path) -> None:
    values, the_plan = store(tmp_path).read(), plan(logged())
    shipper, keeper = (for_host(the_plan.by_name[name], values) for name in ("gpu-01", "gpu-03"))
    assert {"ca.crt", "logs.crt", "logs.key"} <= shipper.keys()
    assert not {"elasticsearch_users", "logs_setup_password"} & shipper.keys()
    assert not [name for name in (*shipper, *keeper) if name == "logs_password"]
    users = dict(line.split(":") for line in keeper["elasticsearch_users"].decode().splitlines())
    assert bcrypt.checkpw(values["logs_password"], users["operator"].encode())
    assert bcrypt.checkpw(values["logs_setup_password"], users["appliance_setup"].encode())
    assert all(value.startswith("$2a$") for value in users.values()), "the name that Elasticsearch knows"
    assert for_host(the_plan.by_name["gpu-03"], values) == keeper, "or each `up` would start it anew"


def test_the_certificate_of_a_shipper_is_nobody_s_but_its_hosts(tmp_path: Path) -> None:
    """With that of another host nobody can pass for Elasticsearch."""
    values = store(tmp_path).read()

    def of(host: str) -> x509.Certificate:
        return x509.load_pem_x509_certificates(values[f"logs-{host}.crt"])[0]

    def names(host: str) -> list[str]:
        found = of(host).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return found.get_values_for_type(x509.DNSName)

    assert names("gpu-01") == ["gpu-01"]
    assert names("gpu-03") == ["gpu-03", "elasticsearch", "logstash", "localhost"]
    usages = of("gpu-01").extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert ExtendedKeyUsageOID.CLIENT_AUTH in usages, "Logstash asks for one"
