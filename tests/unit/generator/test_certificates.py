from __future__ import annotations

import datetime
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from cryptography import x509

from generator import certificate_files, certificates, secret_files
from generator.errors import UserError
from generator.plan import plan
from generator.secrets import Store, for_host, redis_names
from tests.unit.generator.clusters import cluster, one_host, three_hosts
from tests.unit.generator.test_secrets import UID

NAMES = ("video.example.net", "192.168.1.10")
REDIS = redis_names(plan(three_hosts()))


def test_a_good_certificate_is_fresh_and_of_this_authority_for_exactly_these_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = certificates.make_authority()
    key, chain = certificates.make_server(*authority, NAMES)
    assert certificates.is_good(key, chain, authority[1], NAMES)
    assert certificates.is_good(key, chain, authority[1], tuple(reversed(NAMES)))
    assert not certificates.is_good(key, chain, authority[1], (*NAMES, "192.168.1.11"))
    assert not certificates.is_good(key, chain, authority[1], NAMES[:1])
    assert not certificates.is_good(key, chain, certificates.make_authority()[1], NAMES)
    assert not certificates.is_good(key, b"", authority[1], NAMES)
    assert not certificates.is_good(authority[0], chain, authority[1], NAMES)
    assert not certificates.is_good(b"", chain, authority[1], NAMES)
    end = x509.load_pem_x509_certificate(chain).not_valid_after_utc
    assert certificates.is_fresh(chain, end - datetime.timedelta(days=certificates.RENEW_DAYS + 1))
    assert not certificates.is_fresh(chain, end - datetime.timedelta(days=certificates.RENEW_DAYS - 1))


def test_certificates_are_remade_when_needed_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "secrets")
    redis = redis_names(plan(three_hosts()))
    made = store.create_missing(NAMES, tls=True, redis=redis)
    assert {"tls.crt", "redis-gpu-01.crt", "redis-gpu-02.crt", "redis-gpu-03.crt"} <= set(made)
    before = store.read()
    assert store.create_missing(NAMES, tls=True, redis=redis) == []

    moved = {**redis, "gpu-02": ("gpu-02", "192.168.1.99")}
    assert store.create_missing(NAMES, tls=True, redis=moved) == ["redis-gpu-02.crt"]
    assert store.create_missing(("new.example.net",), tls=True, redis=moved) == ["tls.crt"]
    assert store.read()["ca.crt"] == before["ca.crt"]

    # One that a killed run has left with another key than its own.
    (tmp_path / "secrets/redis-gpu-01.crt").unlink()
    assert store.create_missing(("new.example.net",), tls=True, redis=moved) == ["redis-gpu-01.crt"]

    monkeypatch.setattr(certificates, "RENEW_DAYS", certificates.SERVER_DAYS + 1)
    assert len(store.create_missing(("new.example.net",), tls=True, redis=moved)) == 4
    assert store.read()["ca.crt"] == before["ca.crt"]
    monkeypatch.setattr(certificates, "RENEW_DAYS", certificates.AUTHORITY_DAYS + 1)
    store.create_missing(("new.example.net",), tls=True, redis=moved)
    assert store.read()["ca.crt"] != before["ca.crt"]


def test_several_hosts_speak_tls_and_a_single_one_does_not() -> None:
    assert redis_names(plan(one_host())) == {}
    the_plan = plan(three_hosts())
    assert redis_names(the_plan)["gpu-03"][:2] == ("gpu-03", "192.168.1.12")
    assert {host.redis_environment["APPLIANCE_REDIS_CA"] for host in the_plan.hosts} == {"/run/secrets/ca.crt"}
    one, two = (
        {"address": f"192.168.1.{n}", "roles": ["gateway", "control", "worker"][: 4 - n], "cpu_workers": 1}
        for n in (1, 2)
    )
    one["roles"] = ["queue", "worker"]
    two["roles"] = ["gateway", "control", "worker"]
    without_sentinel = plan(cluster(hosts={"one": one, "two": two}, images={"webui": "cpu"}))
    assert redis_names(without_sentinel).keys() == {"one"}
    assert without_sentinel.by_name["two"].redis_environment["APPLIANCE_REDIS_CA"]


def all_made(folder: Path) -> Store:
    store = Store(folder / "secrets")
    store.create_missing(NAMES, tls=True, redis=REDIS)
    return store


@pytest.mark.parametrize("key", [None, "another", "", "encrypted"])
def test_an_authority_without_its_key_stays_and_so_does_what_it_has_signed(tmp_path: Path, key: str | None) -> None:
    """Whoever keeps `ca.key` elsewhere needs it only when something has to be signed."""
    store = all_made(tmp_path)
    before, place = store.read(), store.folder / "ca.key"
    kept = place.read_bytes()
    place.unlink()
    if key is not None:
        encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
        place.write_bytes({"another": certificates.make_authority()[0], "encrypted": encrypted}.get(key, b""))
    assert store.create_missing(NAMES, tls=True, redis=REDIS) == []
    moved = {**REDIS, "gpu-02": ("gpu-02", "192.168.1.99")}
    with pytest.raises(UserError, match=r"ca\.key: missing.*redis-gpu-02\.crt cannot be signed; put the key back"):
        store.create_missing(NAMES, tls=True, redis=moved)
    assert store.read() == before
    place.write_bytes(kept)
    assert store.create_missing(NAMES, tls=True, redis=moved) == ["redis-gpu-02.crt"]
    assert store.read()["ca.crt"] == before["ca.crt"]


def test_an_authority_that_ends_soon_is_made_anew_only_where_its_key_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = all_made(tmp_path)
    before = store.read()
    (store.folder / "ca.key").rename(tmp_path / "kept")
    monkeypatch.setattr(certificates, "RENEW_DAYS", certificates.AUTHORITY_DAYS + 1)
    with pytest.raises(UserError, match=r"ca\.key: missing.*ca\.crt cannot be read, or ends soon"):
        store.create_missing(NAMES, tls=True, redis=REDIS)
    assert store.read() == before
    (tmp_path / "kept").rename(store.folder / "ca.key")
    store.create_missing(NAMES, tls=True, redis=REDIS)
    assert store.read()["ca.crt"] != before["ca.crt"]


@pytest.mark.parametrize("old", ["ends soon", "none"])
def test_an_authority_that_was_cut_off_half_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str
) -> None:
    """Whichever file the power cut comes before."""
    for count in range(9):
        store, left = Store(tmp_path / str(count)), count
        if old != "none":
            with monkeypatch.context() as years_ago:
                years_ago.setattr(certificates, "AUTHORITY_DAYS", 30)
                years_ago.setattr(certificates, "is_fresh", lambda *_: True)
                store.create_missing(NAMES, tls=True, redis=REDIS)

        def cut_off(path: Path, content: bytes) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            secret_files.replace(path, content)

        with monkeypatch.context() as cut:
            cut.setattr(certificate_files, "replace", cut_off)
            with pytest.raises(KeyboardInterrupt):
                store.create_missing(NAMES, tls=True, redis=REDIS)
        store.create_missing(NAMES, tls=True, redis=REDIS)
        values = store.read()
        assert certificates.fits((store.folder / "ca.key").read_bytes(), values["ca.crt"])
        for name, names in {"tls": NAMES, **{f"redis-{host}": names for host, names in REDIS.items()}}.items():
            assert certificates.is_good(values[f"{name}.key"], values[f"{name}.crt"], values["ca.crt"], names)


def test_a_key_that_is_not_that_of_its_certificate_is_replaced_with_it(tmp_path: Path) -> None:
    """What a restore of single files leaves, for one: Redis would not start with it, and nobody would look again."""
    store = all_made(tmp_path)
    before = store.read()
    (store.folder / "redis-gpu-01.key").write_bytes(before["redis-gpu-02.key"])
    assert store.create_missing(NAMES, tls=True, redis=REDIS) == ["redis-gpu-01.crt"]
    after = store.read()
    assert certificates.fits(after["redis-gpu-01.key"], after["redis-gpu-01.crt"])
    assert store.create_missing(NAMES, tls=True, redis=REDIS) == []


def test_several_that_renew_together_leave_no_mixed_pair(tmp_path: Path) -> None:
    """`up --host X &` for each host, on the day that all certificates are due: here and in the hosts' folders."""
    store, the_plan = all_made(tmp_path), plan(three_hosts())
    fork = multiprocessing.get_context("fork")

    def run(together: Barrier, number: int) -> None:
        together.wait(10)
        store.create_missing(NAMES, tls=True, redis=REDIS)
        if number == 0:
            store.rotate("cluster_token")
        store.lay_out(the_plan, tmp_path, uid=UID)

    for _ in range(6):
        for path in [*store.folder.glob("redis-*.crt"), store.folder / "tls.crt"]:
            path.unlink()
        together = fork.Barrier(4)
        runs = [fork.Process(target=run, args=(together, number)) for number in range(4)]
        for one in runs:
            one.start()
        for one in runs:
            one.join(30)
        assert [one.exitcode for one in runs] == [0] * 4
        values = store.read()
        for name in ("tls", *(f"redis-{host}" for host in REDIS)):
            assert certificates.fits(values[f"{name}.key"], values[f"{name}.crt"]), name
        for host in the_plan.hosts:
            for name, content in for_host(host, values).items():
                assert (tmp_path / host.name / "secrets" / name).read_bytes() == content, name
