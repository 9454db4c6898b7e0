"""The pair that certbot has got, and the one that nginx shows."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from keeper.tries import replace


@dataclass(frozen=True)
class Pair:
    chain: bytes
    key: bytes

    @property
    def leaf(self) -> x509.Certificate:
        """Raises `ValueError` where the chain is none."""
        return x509.load_pem_x509_certificate(self.chain)

    @property
    def fault(self) -> str:
        """What is wrong with it; empty where nothing is."""
        try:
            public = serialization.load_pem_private_key(self.key, password=None).public_key()
            leaf = self.leaf
        except (ValueError, TypeError) as error:
            return f"not a certificate with its key: {error}"
        plain = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        if leaf.public_key().public_bytes(*plain) != public.public_bytes(*plain):
            return "the key is not that of the certificate"
        if leaf.not_valid_after_utc <= datetime.datetime.now(datetime.timezone.utc):
            return "the certificate has expired"
        return ""


def issued(lineage: Path) -> Pair | None:
    """What certbot has got last."""
    return _read(lineage / "fullchain.pem", lineage / "privkey.pem")


def shown(tls: Path) -> Pair | None:
    return _read(tls / "tls.crt", tls / "tls.key")


def show(pair: Pair, tls: Path) -> None:
    """The key first. nginx goes on with the pair it has until both fit, also when this is cut off between them."""
    replace(tls / "tls.key", pair.key)
    replace(tls / "tls.crt", pair.chain)


def _read(chain: Path, key: Path) -> Pair | None:
    try:
        return Pair(chain.read_bytes(), key.read_bytes())
    except OSError:
        return None
