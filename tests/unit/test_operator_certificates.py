"""The operator's own CA and certificate: good for their names and time, renewed in time, and never a gap in trust."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from semipd_operator.metricsapi.certificates import CA_VALIDITY, CERTIFICATE_VALIDITY, Identity, Pair, renewed

pytestmark = pytest.mark.unit
NOW = datetime(2026, 1, 2, tzinfo=UTC)
NAMES = ("semipd.sys.svc", "semipd.sys.svc.cluster.local")


def trusted(identity: Identity, by: bytes, at: datetime, name: str = NAMES[0]) -> bool:
    """Whether a client that trusts the CAs `by` takes the server for `name` at that time."""
    store = Store(x509.load_pem_x509_certificates(by))
    verifier = PolicyBuilder().store(store).time(at).build_server_verifier(x509.DNSName(name))
    try:
        verifier.verify(x509.load_pem_x509_certificate(identity.server.certificate), [])
    except VerificationError:
        return False
    return True


def test_a_new_identity_is_good_for_its_names_and_time_only() -> None:
    identity = renewed(None, NAMES, NOW)
    assert all(trusted(identity, identity.ca.certificate, NOW, name) for name in NAMES)
    assert not trusted(identity, identity.ca.certificate, NOW, "other.sys.svc")
    assert not trusted(identity, identity.ca.certificate, NOW + CERTIFICATE_VALIDITY + timedelta(days=1))
    assert not trusted(identity, renewed(None, NAMES, NOW).ca.certificate, NOW), "another CA"


def test_it_is_kept_until_a_third_of_its_time_is_left() -> None:
    first = renewed(None, NAMES, NOW)
    assert renewed(first, NAMES, NOW + CERTIFICATE_VALIDITY / 2) == first
    later = NOW + CERTIFICATE_VALIDITY * 0.7
    second = renewed(first, NAMES, later)
    assert second.ca == first.ca, "whoever trusts the CA need not be told"
    assert second.server != first.server and trusted(second, first.ca.certificate, later + CERTIFICATE_VALIDITY / 2)


def test_a_new_ca_is_handed_out_with_the_old_one() -> None:
    first = renewed(None, NAMES, NOW)
    later = NOW + CA_VALIDITY - CERTIFICATE_VALIDITY
    recent = renewed(first, NAMES, NOW + CA_VALIDITY - 2.1 * CERTIFICATE_VALIDITY)
    assert recent.ca == first.ca
    second = renewed(recent, NAMES, later)
    assert second.ca != first.ca
    assert trusted(second, second.ca.certificate, later)
    assert trusted(recent, second.ca.certificate, later - CERTIFICATE_VALIDITY / 2), (
        "what still serves with the old one"
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda i: Identity(Pair(b"", b""), i.server),
        lambda i: Identity(Pair(b"nonsense", i.ca.key), i.server),
        lambda i: Identity(Pair(i.ca.certificate, renewed(None, NAMES, NOW).ca.key), i.server),
        lambda i: Identity(i.ca, Pair(i.server.certificate, b"nonsense")),
        lambda i: Identity(i.ca, renewed(None, NAMES, NOW).server),
        lambda i: Identity(i.ca, Pair(i.server.certificate, renewed(None, NAMES, NOW).server.key)),
        lambda i: renewed(i, ("other.sys.svc",), NOW),
    ],
)
def test_what_is_damaged_or_of_another_name_is_made_anew(damage: Any) -> None:
    mended = renewed(damage(renewed(None, NAMES, NOW)), NAMES, NOW)
    assert trusted(mended, mended.ca.certificate, NOW)
    assert renewed(mended, NAMES, NOW) == mended
