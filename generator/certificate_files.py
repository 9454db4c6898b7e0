"""The authority and the certificates that it has signed, beside the other secrets: `NAME.key`, `NAME.crt`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from generator import certificates
from generator.errors import UserError
from generator.secret_files import replace


@dataclass(frozen=True)
class _Authority:
    """`key`: none where it is kept elsewhere, or is another's."""

    key: bytes | None
    certificate: bytes


def keep(folder: Path, wanted: Mapping[str, tuple[str, ...]], *, also_client: Collection[str]) -> list[str]:
    """Make those of `wanted` (name → what stands in it) that are missing or no longer good; returns their files.

    A new authority ends all trust between the hosts, so one is never made in the place of one that only lacks its key.
    """
    if not wanted:
        return []
    authority = _authority(folder)
    due = [name for name, names in wanted.items() if not _is_good(folder, name, names, authority)]
    if due and authority.key is None:
        raise _lacks_key(folder, f"{', '.join(f'{name}.crt' for name in due)} cannot be signed")
    for name in due:
        _sign(folder, name, wanted[name], authority, also_client=name in also_client)
    return [f"{name}.crt" for name in due]


def _authority(folder: Path) -> _Authority:
    key, certificate = folder / "ca.key", folder / "ca.crt"
    there = certificate.read_bytes() if certificate.exists() else None
    fitting = key.read_bytes() if key.exists() else None
    if there is not None and certificates.is_fresh(there):
        return _Authority(fitting if fitting and certificates.fits(fitting, there) else None, there)
    if there is not None and fitting is None:
        raise _lacks_key(folder, "ca.crt cannot be read, or ends soon")
    made = certificates.make_authority()
    # Cut off between the two, the next run finds a certificate that is not fresh, or none, and makes both again.
    replace(key, made[0])
    replace(certificate, made[1])
    return _Authority(*made)


def _lacks_key(folder: Path, reason: str) -> UserError:
    return UserError(
        f"{folder / 'ca.key'}: missing, or not that of ca.crt, and {reason}; put the key back and run this again. "
        "If it is lost: remove ca.crt and ca.key, run this again and bring the new authority to all hosts with `up`"
    )


def _is_good(folder: Path, name: str, names: Iterable[str], authority: _Authority) -> bool:
    key, chain = folder / f"{name}.key", folder / f"{name}.crt"
    if not (key.exists() and chain.exists()):
        return False
    return certificates.is_good(key.read_bytes(), chain.read_bytes(), authority.certificate, tuple(names))


def _sign(folder: Path, name: str, names: tuple[str, ...], authority: _Authority, *, also_client: bool) -> None:
    """The certificate is written last: without it the next run makes both again."""
    if authority.key is None:
        raise AssertionError("asked for before")
    chain = folder / f"{name}.crt"
    chain.unlink(missing_ok=True)
    made = certificates.make_server(authority.key, authority.certificate, names, also_client=also_client)
    replace(folder / f"{name}.key", made[0])
    replace(chain, made[1])
