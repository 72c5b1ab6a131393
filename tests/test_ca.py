"""The pool's CA: real handshakes with what it issues, and what it refuses."""

import os
import ssl
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from coordinator.ca import SERVER_NAME, CertificateAuthority, CertificateError, CsrError
from coordinator.core.jobs import WorkerId
from coordinator.peer import worker_in
from potluck.identity import JoinToken, WorkerIdentity

DAY = 86_400.0
NOW = 1_800_000_000.0
WORKER = WorkerId("wrk_abc")


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> x509.Certificate | None:
    """A whole TLS handshake in memory; what the server saw of the client."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname=name)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        for side in (here, there):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    der = there.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(der) if der else None


def contexts(
    folder: Path, ca: CertificateAuthority, worker_pem: bytes, identity: WorkerIdentity, now: float
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    shown = ca.server_certificate(now)
    (folder / "server").write_bytes(shown.pem + shown.key_pem)
    (folder / "worker").write_bytes(worker_pem + identity.tls_key_pem())
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.verify_mode = ssl.CERT_REQUIRED
    for context, name in ((server, "server"), (client, "worker")):
        context.load_cert_chain(folder / name)
        context.load_verify_locations(cadata=ca.certificate_pem.decode())
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    return server, client


def test_a_worker_and_the_coordinator_shake_hands(tmp_path: Path) -> None:
    """Mutual TLS, strict X.509 checks, the one server name; the id is in the certificate that was verified."""
    now = tmp_path.stat().st_mtime  # the handshake looks at the real clock
    ca = CertificateAuthority.open(tmp_path, "lab", now)
    identity = WorkerIdentity.generate()
    issued = ca.sign_worker(identity.csr(), WORKER, now)
    server, client = contexts(tmp_path, ca, issued.pem, identity, now)
    seen = handshake(server, client, SERVER_NAME)
    assert seen is not None
    assert worker_in(seen.public_bytes(Encoding.PEM))[0] == WORKER
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, client, "localhost")


def test_strangers_and_expired_workers_fail_the_handshake(tmp_path: Path) -> None:
    now = tmp_path.stat().st_mtime
    ca = CertificateAuthority.open(tmp_path, "lab", now)
    other = CertificateAuthority.open(tmp_path / "other", "lab", now)
    identity = WorkerIdentity.generate()
    stranger = other.sign_worker(identity.csr(), WORKER, now).pem
    expired = ca.sign_worker(identity.csr(), WORKER, now - 8 * DAY).pem
    for pem, words in ((stranger, "verify failed"), (expired, "expired")):
        server, client = contexts(tmp_path, ca, pem, identity, now)
        with pytest.raises(ssl.SSLCertVerificationError, match=words):
            handshake(server, client, SERVER_NAME)


def test_a_clock_that_was_hours_ahead_and_was_set_right_locks_nobody_out(tmp_path: Path) -> None:
    """What was issued meanwhile, and the pool's own CA, are good by the right time as well."""
    now = tmp_path.stat().st_mtime
    ahead = now + 20 * 3600
    ca = CertificateAuthority.open(tmp_path, "lab", ahead)
    identity = WorkerIdentity.generate()
    issued = ca.sign_worker(identity.csr(), WORKER, ahead)
    server, client = contexts(tmp_path, ca, issued.pem, identity, ahead)
    assert handshake(server, client, SERVER_NAME) is not None
    assert CertificateAuthority.open(tmp_path, "lab", now).certificate_pem == ca.certificate_pem


def test_a_clock_before_the_pool_was_founded_is_said_in_a_sentence(tmp_path: Path) -> None:
    """As of a board whose battery is empty: nobody could connect, and all that is written would be dated wrong."""
    CertificateAuthority.open(tmp_path, "lab", NOW)
    with pytest.raises(CertificateError, match=r"by this machine's clock it is .* Set it"):
        CertificateAuthority.open(tmp_path, "lab", NOW - 2 * DAY)


def test_a_workers_certificate_says_what_we_decided(tmp_path: Path) -> None:
    """7 days, backdated by one, for clients; the names in the request count for nothing."""
    ca = CertificateAuthority.open(tmp_path, "lab", NOW)
    key = ec.generate_private_key(ec.SECP256R1())
    wish = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(wish)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    for form in (Encoding.PEM, Encoding.DER):
        issued = ca.sign_worker(csr.public_bytes(form), WORKER, NOW)
        made = x509.load_pem_x509_certificate(issued.pem)
        assert made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == WORKER
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == []
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"potluck:worker:{WORKER}"]
        assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert made.not_valid_before_utc.timestamp() == issued.not_before == NOW - DAY
        assert made.not_valid_after_utc.timestamp() == issued.not_after == NOW + 7 * DAY
        assert issued.serial == f"{made.serial_number:x}"


def test_requests_that_are_refused(tmp_path: Path) -> None:
    ca = CertificateAuthority.open(tmp_path, "lab", NOW)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    keys = (
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    )
    for key in keys:
        with pytest.raises(CsrError, match="P-256"):
            ca.sign_worker(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), WORKER, NOW)
    request = builder.sign(Ed25519PrivateKey.generate(), None)
    with pytest.raises(CsrError, match="P-256"):
        ca.sign_worker(request.public_bytes(Encoding.DER), WORKER, NOW)
    der = bytearray(
        builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.DER)
    )
    der[-1] ^= 1
    with pytest.raises(CsrError, match="not signed by its own key"):
        ca.sign_worker(bytes(der), WORKER, NOW)
    for noise in (b"", b"-----BEGIN nothing", os.urandom(200), ca.certificate_pem):
        with pytest.raises(CsrError, match="no certificate signing request"):
            ca.sign_worker(noise, WORKER, NOW)
    with pytest.raises(CsrError, match="larger than"):
        ca.sign_worker(bytes(20_000), WORKER, NOW)


def test_the_ca_survives_a_restart_and_matches_join_tokens(tmp_path: Path) -> None:
    ca = CertificateAuthority.open(tmp_path, "lab", NOW)
    again = CertificateAuthority.open(tmp_path, "another name", NOW + DAY)
    assert again.certificate_pem == ca.certificate_pem
    assert again.public_key == ca.public_key
    JoinToken.create(ca.fingerprint()).check_pool(again.certificate_pem)
    signature = ca.sign(b"head")
    Ed25519PublicKey.from_public_bytes(again.public_key).verify(signature, b"head")
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(again.public_key).verify(signature, b"other")
    assert "lab" in ca.certificate.subject.rfc4514_string()
    if sys.platform != "win32":
        path = tmp_path / "coordinator" / "ca" / "authority.pem"
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_servers_certificate_is_kept_renewed_and_replaced(tmp_path: Path) -> None:
    ca = CertificateAuthority.open(tmp_path, "lab", NOW)
    first = ca.server_certificate(NOW)
    assert ca.server_certificate(NOW + 334 * DAY) == first
    renewed = ca.server_certificate(NOW + 336 * DAY)
    assert renewed.not_after == NOW + (336 + 365) * DAY
    set_back = ca.server_certificate(NOW)
    assert set_back.not_after == NOW + 365 * DAY, "one that is not good yet is none"
    (tmp_path / "coordinator" / "ca" / "server.pem").write_bytes(b"noise")
    replaced = ca.server_certificate(NOW)
    assert replaced.pem not in {renewed.pem, set_back.pem}
    other = CertificateAuthority.open(tmp_path / "other", "lab", NOW).server_certificate(NOW)
    (tmp_path / "coordinator" / "ca" / "server.pem").write_bytes(other.key_pem + other.pem)
    assert ca.server_certificate(NOW).pem not in {other.pem, replaced.pem}


def test_a_damaged_or_open_file_is_said_in_a_sentence(tmp_path: Path) -> None:
    """Nothing is made anew silently: that would lock every worker out."""
    CertificateAuthority.open(tmp_path, "lab", NOW)
    path = tmp_path / "coordinator" / "ca" / "authority.pem"
    whole = path.read_bytes()
    other = CertificateAuthority.open(tmp_path / "other", "lab", NOW)
    swapped = whole.replace(whole[: whole.index(b"-----BEGIN CERT")], other.server_certificate(NOW).key_pem)
    for damaged in (b"", b"noise", whole[: len(whole) // 2], whole.replace(b"A", b"B"), swapped):
        path.write_bytes(damaged)
        with pytest.raises(CertificateError, match=r"is damaged: .* Restore it from a backup"):
            CertificateAuthority.open(tmp_path, "lab", NOW)
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    with pytest.raises(CertificateError, match="expired on 20"):
        CertificateAuthority.open(tmp_path, "lab", NOW + 3651 * DAY)
    if sys.platform != "win32":
        path.chmod(0o644)
        with pytest.raises(CertificateError, match=r"others can read .*`chmod 600"):
            CertificateAuthority.open(tmp_path, "lab", NOW)
