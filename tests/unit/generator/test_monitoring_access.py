from __future__ import annotations

import json
from pathlib import Path

import bcrypt
import pytest
import yaml

from generator.errors import UserError
from generator.keys import ApiKey, KeyRole, with_added
from generator.monitoring_access import redis_exporter_file, web_file
from generator.plan import plan
from generator.redis_access import access_files
from generator.render import render_host
from generator.secrets import Store, for_host
from generator.sources import read_sources
from tests.unit.generator.clusters import monitored, monitored_alone, three_hosts
from tests.unit.generator.test_secrets import store

PASSWORD = "correct horse battery staple"


def test_the_file_lets_the_operator_in_and_nobody_else() -> None:
    content = yaml.safe_load(web_file(PASSWORD, tls=False))
    (user, hashed) = next(iter(content["basic_auth_users"].items()))
    assert user == "operator"
    assert bcrypt.checkpw(PASSWORD.encode(), hashed.encode())
    assert not bcrypt.checkpw(b"another", hashed.encode())
    assert "tls_server_config" not in content
    assert yaml.safe_load(web_file(PASSWORD, tls=True))["tls_server_config"]["min_version"] == "TLS12"


def test_the_same_password_gives_the_same_file_and_another_one_another_salt() -> None:
    """Or every `up` would make all that mounts it anew."""
    assert web_file(PASSWORD, tls=True) == web_file(PASSWORD, tls=True)
    hashes = [yaml.safe_load(web_file(one, tls=False))["basic_auth_users"]["operator"] for one in (PASSWORD, "b")]
    assert hashes[0][:29] != hashes[1][:29]


def test_every_salt_is_one_that_bcrypt_takes() -> None:
    for number in range(5):
        web_file(f"{number}", tls=False)


def test_each_server_has_its_account() -> None:
    accounts = ["rediss://exporter@10.0.0.1:6379", "rediss://exporter@10.0.0.1:26379"]
    assert json.loads(redis_exporter_file("x", accounts)) == dict.fromkeys(accounts, "x")


def test_redis_knows_the_exporter_where_there_is_monitoring() -> None:
    passwords = {"appliance": "a", "replica": "b", "sentinel": "c"}
    without = access_files(**passwords, replicated=True)
    with_it = access_files(**passwords, replicated=True, exporter="d")
    assert not any("exporter" in text for text in without.values())
    for name in ("redis_users.acl", "sentinel_users.acl"):
        (line,) = [line for line in with_it[name].splitlines() if line.startswith("user exporter ")]
        assert " ~" not in line, "it sees no key"
        assert " +@" not in line, "it may do only what is named"


def test_the_gateways_know_alertmanager_by_a_key_of_its_own(tmp_path: Path) -> None:
    values = store(tmp_path).read()
    with_monitoring = for_host(plan(monitored()).by_name["gpu-01"], values)["api_keys"].decode()
    assert [line.split(":")[:2] for line in with_monitoring.splitlines()] == [
        ["operator", "operator"],
        ["alertmanager", "operator"],
    ]
    assert b"alertmanager" not in for_host(plan(three_hosts()).by_name["gpu-01"], values)["api_keys"]


def test_nobody_else_is_called_alertmanager() -> None:
    with pytest.raises(UserError, match="`secrets rotate alerts_key` replaces it"):
        with_added((), ApiKey("alertmanager", KeyRole.USER, "0" * 64))


def test_on_one_host_with_tls_the_gateway_s_authority_is_there_for_alertmanager(tmp_path: Path) -> None:
    """Prometheus and the others speak plain HTTP to each other there, but the gateway does not."""
    the_plan = plan(monitored_alone(gateway={"server_name": "_"}))
    (host,) = the_plan.hosts
    assert host.metrics
    assert (host.metrics.tls, host.metrics.gateways.ca) == (False, "/run/secrets/ca.crt")
    services = yaml.safe_load(render_host(the_plan.cluster, host, read_sources())["compose.yaml"])
    assert "ca.crt" in services["services"]["alertmanager"]["secrets"]
    assert "ca.crt" in services["secrets"]
    made = Store(tmp_path)
    made.create_missing(("localhost",), tls=True)
    assert "ca.crt" in for_host(host, made.read())
