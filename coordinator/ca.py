"""The pool's own certificate authority, and the key that signs for the pool.

Workers trust this CA and nothing else, and it vouches for workers and the coordinator only. The server's
name is always `coordinator.potluck`, so a pool needs no DNS. One file holds the CA's key, its certificate and
the Ed25519 key together: either all of it is there or nothing.
"""

import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.core.jobs import WorkerId
from coordinator.records import Issued
from potluck.home import write_secret
from potluck.identity import BACKDATE

SERVER_NAME: Final = "coordinator.potluck"
WORKER_URI: Final = "potluck:worker:"
AUTHORITY_FILE: Final = "authority.pem"
SERVER_FILE: Final = "server.pem"
CA_YEARS: Final = 10
SERVER_DAYS: Final = 365
SERVER_RENEW_DAYS: Final = 30
WORKER_DAYS: Final = 7
CSR_BYTES_MAX: Final = 16 * 1024
_FILE_BYTES_MAX: Final = 64 * 1024
_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)


class CertificateError(Exception):
    """The CA's files cannot be used; the message says what to do."""


class CsrError(ValueError):
    """The certificate signing request is refused; the message says why."""


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """What the coordinator shows to workers."""

    key_pem: bytes = field(repr=False)
    pem: bytes
    not_after: float


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """`worker_days` is how long a worker's certificate lasts."""

    folder: Path
    certificate: x509.Certificate
    _key: EllipticCurvePrivateKey = field(repr=False)
    _signing: Ed25519PrivateKey = field(repr=False)
    worker_days: int = WORKER_DAYS

    @classmethod
    def open(
        cls, home: Path, pool_name: str, now: float, worker_days: int = WORKER_DAYS
    ) -> "CertificateAuthority":
        """Load the pool's CA, or make it when there is none.

        Raises CertificateError if its file is damaged, others can read it, or it is not its time.
        """
        path = home / "coordinator" / "ca" / AUTHORITY_FILE
        if not path.exists():
            write_secret(path, _new_authority(pool_name, _moment(now)))
        authority = cls.read(home, worker_days)
        certificate = authority.certificate
        if certificate.not_valid_after_utc <= _moment(now):
            raise CertificateError(
                f"the pool's CA in {path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}. Move it away"
                " to have a new one made; every worker must then join again."
            )
        if certificate.not_valid_before_utc > _moment(now):
            since = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M}"
            raise CertificateError(
                f"the pool's CA in {path} is good from {since} UTC, and by this machine's clock it is"
                f" {_moment(now):%Y-%m-%d %H:%M}: no worker could connect. Set it, then start again. If"
                " it is right and was wrong when the pool was founded: `potluck coordinator rotate-ca`."
            )
        return authority

    @classmethod
    def read(cls, home: Path, worker_days: int = WORKER_DAYS) -> "CertificateAuthority":
        """As it is in its file, whatever the time. Raises CertificateError if that is damaged or others can
        read it.
        """
        folder = home / "coordinator" / "ca"
        return cls(folder, *_load_authority(folder / AUTHORITY_FILE), worker_days)

    @classmethod
    def rotate(cls, home: Path, pool_name: str, now: float) -> "CertificateAuthority":
        """Replace the CA of a pool that is not running, and keep the key that signs for the pool: what it
        has signed stays checkable. Earlier certificates and join tokens are worthless: workers join again.

        Raises CertificateError if there is no CA, or its file is damaged; OSError.
        """
        path = home / "coordinator" / "ca" / AUTHORITY_FILE
        if not path.exists():
            raise CertificateError(f"there is no CA in {path}: `potluck coordinator start` makes one.")
        signing = _load_authority(path)[2]
        write_secret(path, _new_authority(pool_name, _moment(now), signing))
        return cls.open(home, pool_name, now)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def fingerprint(self) -> str:
        """Hex sha256 of the CA certificate in DER: what join tokens carry."""
        return sha256(self.certificate.public_bytes(Encoding.DER)).hexdigest()

    @property
    def public_key(self) -> bytes:
        """The raw Ed25519 key that checks what `sign` signed, 32 bytes."""
        return self._signing.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature in the pool's name, 64 bytes."""
        return self._signing.sign(message)

    def sign_worker(self, csr: bytes, worker_id: WorkerId, now: float) -> Issued:
        """A certificate for the key in the request (PEM or DER); the names in it are ours, not its own.

        Raises CsrError for what is no request, is not signed by its own key, or has no P-256 key.
        """
        key = _key_of_csr(csr)
        start = _moment(now) - BACKDATE
        end = min(_moment(now) + timedelta(days=self.worker_days), self.certificate.not_valid_after_utc)
        names = [x509.UniformResourceIdentifier(WORKER_URI + worker_id)]
        certificate = self._issue(key, worker_id, names, ExtendedKeyUsageOID.CLIENT_AUTH, start, end)
        return Issued(
            pem=certificate.public_bytes(Encoding.PEM),
            serial=f"{certificate.serial_number:x}",
            not_before=start.timestamp(),
            not_after=end.timestamp(),
        )

    def server_certificate(self, now: float) -> ServerCertificate:
        """The coordinator's own, made anew when less than SERVER_RENEW_DAYS are left or it cannot be used."""
        path = self.folder / SERVER_FILE
        known = self._load_server(path, _moment(now))
        if known is not None:
            return known
        key = generate_private_key(SECP256R1())
        start = _moment(now) - BACKDATE
        end = min(_moment(now) + timedelta(days=SERVER_DAYS), self.certificate.not_valid_after_utc)
        names = [x509.DNSName(SERVER_NAME)]
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        certificate = self._issue(key.public_key(), SERVER_NAME, names, usage, start, end)
        key_pem, pem = _private_pem(key), certificate.public_bytes(Encoding.PEM)
        write_secret(path, key_pem + pem)
        return ServerCertificate(key_pem, pem, end.timestamp())

    def _load_server(self, path: Path, now: datetime) -> ServerCertificate | None:
        try:
            key_pem, pem = _blocks(path.read_bytes()[:_FILE_BYTES_MAX])
            key, certificate = load_pem_private_key(key_pem, None), x509.load_pem_x509_certificate(pem)
            certificate.verify_directly_issued_by(self.certificate)
        except Exception:  # why it is unfit does not matter: another costs nothing
            return None
        if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            return None
        if certificate.not_valid_after_utc - now < timedelta(days=SERVER_RENEW_DAYS):
            return None
        if certificate.not_valid_before_utc > now:  # the clock was set back since
            return None
        return ServerCertificate(key_pem, pem, certificate.not_valid_after_utc.timestamp())

    def _issue(
        self,
        key: EllipticCurvePublicKey,
        common_name: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        start: datetime,
        end: datetime,
    ) -> x509.Certificate:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(_named(common_name))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _new_authority(pool_name: str, now: datetime, signing: Ed25519PrivateKey | None = None) -> bytes:
    key, signing = generate_private_key(SECP256R1()), signing or Ed25519PrivateKey.generate()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_named(pool_name))
        .issuer_name(_named(pool_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=365 * CA_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _private_pem(key) + certificate.public_bytes(Encoding.PEM) + _private_pem(signing)


def _load_authority(path: Path) -> tuple[x509.Certificate, EllipticCurvePrivateKey, Ed25519PrivateKey]:
    try:
        if sys.platform != "win32" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise CertificateError(
                f"others can read {path}, which holds the pool's secret keys. If nobody has, close it with"
                f" `chmod 600 {path}`; otherwise move it away, and every worker must join again."
            )
        data = path.read_bytes()[:_FILE_BYTES_MAX]
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        key_pem, certificate_pem, signing_pem = _blocks(data)
        key, signing = load_pem_private_key(key_pem, None), load_pem_private_key(signing_pem, None)
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except (ValueError, TypeError):
        raise _damaged(path) from None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(signing, Ed25519PrivateKey):
        raise _damaged(path)
    if key.public_key() != certificate.public_key():
        raise _damaged(path)
    return certificate, key, signing


def _damaged(path: Path) -> CertificateError:
    return CertificateError(
        f"{path} is damaged: it must hold the CA's key, its certificate and the signing key. Restore it from"
        " a backup. Moving it away makes a new CA, and every worker must then join again."
    )


def _key_of_csr(csr: bytes) -> EllipticCurvePublicKey:
    if len(csr) > CSR_BYTES_MAX:
        raise CsrError(f"the certificate signing request is larger than {CSR_BYTES_MAX} bytes")
    pem = csr.lstrip().startswith(b"-----BEGIN")
    try:
        request = x509.load_pem_x509_csr(csr) if pem else x509.load_der_x509_csr(csr)
        key, signed = request.public_key(), request.is_signature_valid
    except Exception:  # whatever a stranger's bytes make the parser raise, they are no request
        raise CsrError("this is no certificate signing request") from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise CsrError("the certificate signing request must be for a P-256 key")
    if not signed:
        raise CsrError("the certificate signing request is not signed by its own key")
    return key


def _blocks(data: bytes) -> list[bytes]:
    return [match.group() + b"\n" for match in _BLOCK.finditer(data)]


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _private_pem(key: EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _moment(at: float) -> datetime:
    """Certificates know whole seconds."""
    return datetime.fromtimestamp(int(at), UTC)
