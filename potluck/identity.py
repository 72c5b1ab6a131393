"""Who a worker is: its two keys, the token that lets it in, and what it signs to get a new certificate.

The TLS key is P-256, since every TLS library speaks it; receipts are signed by an Ed25519 key of their own,
so that a receipt stays checkable when certificates have long been replaced.
"""

import base64
import binascii
import hmac
import re
import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
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

from potluck.home import write_secret
from potluck.receipts import canonical_json

TOKEN_SECRET_BYTES: Final = 16
FINGERPRINT_CHARS: Final = 32  # 128 bits of the CA certificate's sha256
# So long before it was made a certificate begins. Two clocks may differ by a time zone, and one that was fast
# may be set back: whoever looks by the other one must not find a certificate not yet valid.
BACKDATE: Final = timedelta(days=1)
TLS_KEY_FILE: Final = "tls.key"
RECEIPT_KEY_FILE: Final = "receipt.key"
_TOKEN = re.compile(r"pl1_([A-Za-z0-9_-]{22})_([0-9a-f]{32})([0-9a-f]{4})")


class TokenError(ValueError):
    """The join token cannot be used; the message is a sentence for the person who typed it."""


class IdentityError(ValueError):
    """The worker's keys cannot be used; the message says what to do."""


def fingerprint_of(certificate_pem: bytes) -> str:
    """Hex sha256 of a certificate's DER form. Raises ValueError if these bytes hold no certificate."""
    try:
        der = x509.load_pem_x509_certificate(certificate_pem).public_bytes(Encoding.DER)
    except x509.InvalidVersion as error:
        raise ValueError(str(error)) from None
    return sha256(der).hexdigest()


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A secret, and the fingerprint by which a worker knows the pool that it is invited to.

    The text ends with a CRC-16 of what stands before it: it finds every change within 16 neighbouring
    bits, so each single mistyped character and each swapped pair is told from a token that the pool does
    not know. It protects no secret, and need not.
    """

    secret: bytes = field(repr=False)
    fingerprint: str

    def __post_init__(self) -> None:
        if len(self.secret) != TOKEN_SECRET_BYTES:
            raise TokenError(f"a join token's secret has {TOKEN_SECRET_BYTES} bytes")
        if not re.fullmatch(r"[0-9a-f]{32}", self.fingerprint):
            raise TokenError(f"a pool's fingerprint has {FINGERPRINT_CHARS} lower-case hex digits")

    @classmethod
    def create(cls, ca_fingerprint: str) -> "JoinToken":
        """A new random token for the pool whose CA certificate has this sha256 (hex, whole or cut)."""
        return cls(secrets.token_bytes(TOKEN_SECRET_BYTES), ca_fingerprint[:FINGERPRINT_CHARS])

    @classmethod
    def parse(cls, text: str) -> "JoinToken":
        """Raises TokenError with a sentence if the text is no token or was mistyped."""
        match = _TOKEN.fullmatch(text.strip())
        if match is None:
            raise TokenError(
                "this is not a join token: one starts with `pl1_` and has 63 characters. Copy it whole, or"
                " ask for a new one with `potluck coordinator join-token`."
            )
        secret, fingerprint, check = match.groups()
        if _check(f"pl1_{secret}_{fingerprint}") != check:
            raise TokenError(
                "this join token was mistyped: its check digits do not fit. Copy it again, whole."
            )
        return cls(base64.urlsafe_b64decode(secret + "=="), fingerprint)

    def __str__(self) -> str:
        secret = base64.urlsafe_b64encode(self.secret).decode("ascii").rstrip("=")
        text = f"pl1_{secret}_{self.fingerprint}"
        return text + _check(text)

    @property
    def digest(self) -> str:
        """What the coordinator keeps of the secret: hex sha256 (128 random bits need no slow hash)."""
        return sha256(self.secret).hexdigest()

    def check_pool(self, ca_pem: bytes) -> None:
        """Raises TokenError unless the token was made by the pool with this CA."""
        try:
            found = fingerprint_of(ca_pem)
        except ValueError:
            raise TokenError("the answer holds no certificate: is this the address of a pool?") from None
        if not hmac.compare_digest(found[:FINGERPRINT_CHARS], self.fingerprint):
            raise TokenError(
                "this token is of another pool: the certificate at this address is not the one that the token"
                " names. Check the address, or ask for a token of this pool."
            )


def _check(text: str) -> str:
    return f"{binascii.crc_hqx(text.encode('ascii'), 0xFFFF):04x}"


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    tls_key: EllipticCurvePrivateKey = field(repr=False)
    receipt_key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> "WorkerIdentity":
        """New keys, in memory only."""
        return cls(generate_private_key(SECP256R1()), Ed25519PrivateKey.generate())

    @classmethod
    def create(cls, folder: Path) -> "WorkerIdentity":
        """New keys, kept in the folder (0600)."""
        identity = cls.generate()
        identity.save(folder)
        return identity

    @classmethod
    def load(cls, folder: Path) -> "WorkerIdentity":
        """Raises FileNotFoundError if there are no keys, IdentityError if they cannot be read."""
        tls_key = _read_key(folder / TLS_KEY_FILE)
        receipt_key = _read_key(folder / RECEIPT_KEY_FILE)
        if not isinstance(tls_key, EllipticCurvePrivateKey) or not isinstance(receipt_key, Ed25519PrivateKey):
            raise IdentityError(f"the keys in {folder} are of another kind. Restore them, or join again.")
        return cls(tls_key, receipt_key)

    def save(self, folder: Path) -> None:
        write_secret(folder / TLS_KEY_FILE, self.tls_key_pem())
        pem = self.receipt_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_secret(folder / RECEIPT_KEY_FILE, pem)

    def tls_key_pem(self) -> bytes:
        return self.tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def receipt_public_key(self) -> bytes:
        """Raw Ed25519 public key, 32 bytes."""
        return self.receipt_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def csr(self) -> bytes:
        """A certificate signing request (PEM). It names nobody: the coordinator decides whose it is."""
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return request.sign(self.tls_key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def sign(self, message: bytes) -> bytes:
        return self.receipt_key.sign(message)


def _read_key(path: Path) -> object:
    try:
        return load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        raise IdentityError(f"{path} holds no key. Restore it, or join again.") from None


def renewal_message(*, worker_id: str, csr: str, at: int) -> bytes:
    """What a worker signs with its receipt key to ask for a new certificate; `at` is unix seconds."""
    return canonical_json({"worker_id": worker_id, "csr": csr, "at": at})


def leave_message(*, worker_id: str, at: int) -> bytes:
    """What a worker signs with its receipt key to leave its pool for good; `at` is unix seconds."""
    return canonical_json({"leave": worker_id, "at": at})
