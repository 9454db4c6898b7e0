"""The cluster's own certificate authority and the certificates of its servers (X.509, ECDSA P-256)."""

from __future__ import annotations

import datetime
import ipaddress

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
SERVER_DAYS = 824
"""The longest validity that common clients accept for a certificate of a private authority."""
RENEW_DAYS = 60
"""A certificate with fewer days left is made anew: `up` runs seldom."""


def make_authority() -> tuple[bytes, bytes]:
    """`(key, certificate)` in PEM of a new authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "AnimateDiff HA cluster CA")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _builder(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(key), certificate.public_bytes(serialization.Encoding.PEM)


def make_server(
    authority_key: bytes, authority_certificate: bytes, names: tuple[str, ...], *, also_client: bool = False
) -> tuple[bytes, bytes]:
    """`(key, chain)` in PEM for a server reachable under `names` (host names or addresses); `also_client`: that shows
    it to others like itself as well."""
    signer = serialization.load_pem_private_key(authority_key, password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TypeError("the authority's key is not ECDSA")
    issuer = x509.load_pem_x509_certificate(authority_certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if also_client else [])]
    certificate = (
        _builder(subject, issuer.subject, key.public_key(), SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        # Strict clients (Python 3.13 by default) refuse a certificate without it: RFC 5280, section 4.2.1.1.
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _pem(key), certificate.public_bytes(serialization.Encoding.PEM) + authority_certificate


def is_fresh(certificate: bytes, now: datetime.datetime | None = None) -> bool:
    """Whether it is readable and is valid for a while yet."""
    try:
        end = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    except ValueError:
        return False
    moment = now or datetime.datetime.now(datetime.timezone.utc)
    return end - moment > datetime.timedelta(days=RENEW_DAYS)


def fits(key: bytes, chain: bytes) -> bool:
    """Whether both can be read and are a pair."""
    try:
        public = serialization.load_pem_private_key(key, password=None).public_key()
        return x509.load_pem_x509_certificate(chain).public_key() == public
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def is_good(key: bytes, chain: bytes, authority_certificate: bytes, names: tuple[str, ...]) -> bool:
    """Whether a server's certificate is fresh, of this key and this authority and for exactly these names."""
    if not (is_fresh(chain) and fits(key, chain)):
        return False
    certificate = x509.load_pem_x509_certificate(chain)
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority_certificate))
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    return set(held) == {_general_name(name) for name in names}


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # An hour back: the hosts' clocks may differ a little.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
