"""A certificate authority of our own and a server certificate below it: made, judged, renewed. Knows no cluster.

The CA stays for years, so that its certificate, which others are told to trust, rarely changes; the server certificate
is renewed when a third of its time is left. A new CA is handed out together with the old one, so there is no moment at
which those who trust either refuse the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_VALIDITY = timedelta(days=3650)
CERTIFICATE_VALIDITY = timedelta(days=90)
_SKEW = timedelta(minutes=10)
"""Clocks of others may be behind ours."""


@dataclass(frozen=True)
class Pair:
    """PEM of a certificate (of a CA: the newest first, then those that are still trusted) and of its private key."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class Identity:
    ca: Pair
    server: Pair


def renewed(before: Identity | None, names: tuple[str, ...], now: datetime) -> Identity:
    """`before` where it is still good for the DNS `names`; else what must be new of it."""
    if before is None or not _good_ca(before.ca, now):
        ca = _make_ca(now, before.ca if before else None)
        return Identity(ca, _make_server(ca, names, now))
    if not _good_server(before, names, now):
        return Identity(before.ca, _make_server(before.ca, names, now))
    return before


def _good_ca(ca: Pair, now: datetime) -> bool:
    try:
        certificate = _newest(ca.certificate)
        key = _key(ca.key)
    except ValueError:
        return False
    # It must outlive what it signs.
    left = certificate.not_valid_after_utc - now
    return left > 2 * CERTIFICATE_VALIDITY and certificate.public_key() == key.public_key()


def _good_server(identity: Identity, names: tuple[str, ...], now: datetime) -> bool:
    try:
        certificate = _newest(identity.server.certificate)
        certificate.verify_directly_issued_by(_newest(identity.ca.certificate))
        matches = certificate.public_key() == _key(identity.server.key).public_key()
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, InvalidSignature, TypeError, x509.ExtensionNotFound):
        return False
    left = certificate.not_valid_after_utc - now
    return matches and left > CERTIFICATE_VALIDITY / 3 and set(san.get_values_for_type(x509.DNSName)) == set(names)


def _make_ca(now: datetime, before: Pair | None) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "semipd-operator")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(name, name, key.public_key(), now, CA_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    certificate = _pem(builder.sign(key, hashes.SHA256()))
    return Pair(certificate + _still_trusted(before, now), _key_pem(key))


def _make_server(ca: Pair, names: tuple[str, ...], now: datetime) -> Pair:
    key, issuer_key, issuer = ec.generate_private_key(ec.SECP256R1()), _key(ca.key), _newest(ca.certificate)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "semipd-operator metrics")])
    builder = (
        _builder(name, issuer.subject, key.public_key(), now, CERTIFICATE_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    return Pair(_pem(builder.sign(issuer_key, hashes.SHA256())), _key_pem(key))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, validity: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + validity)
    )


def _still_trusted(before: Pair | None, now: datetime) -> bytes:
    """The newest of the CAs before, while it is valid."""
    try:
        old = _newest(before.certificate) if before else None
    except ValueError:
        return b""
    return _pem(old) if old is not None and old.not_valid_after_utc > now else b""


def _newest(pem: bytes) -> x509.Certificate:
    """Raises ValueError for what is no PEM."""
    return x509.load_pem_x509_certificates(pem)[0]


def _key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises ValueError for what is no such key."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:  # an encrypted one
        raise ValueError(str(error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic curve key")
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())
