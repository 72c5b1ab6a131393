"""A worker's signed statement of the work of one attempt.

The body is canonical JSON (sorted keys, no spaces, ASCII, integers and strings only), so that one meaning
has one spelling and a signature can be checked years later from the bytes alone. It holds no text of the
job: `output_sha256` is the digest of the digests of the choices' texts (UTF-8), in order of choice.
The signature is Ed25519 (RFC 8032) over the body.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from nacl.bindings import crypto_sign_open
from nacl.exceptions import CryptoError

BODY_BYTES_MAX: Final = 4096
TEXT_CHARS_MAX: Final = 256
INTEGER_MAX: Final = 2**53 - 1  # every JSON reader keeps integers up to here exact (RFC 8259, section 6)
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_SPELLING: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ReceiptError(ValueError):
    """These bytes are no receipt, or not in the one allowed spelling."""


def canonical_json(value: Mapping[str, int | str]) -> bytes:
    """The one spelling of a flat object of integers and strings. Raises ReceiptError for anything else."""
    for name, item in value.items():
        if type(item) not in {int, str}:  # a bool is an int to isinstance, but has another spelling
            raise ReceiptError(f"`{name}` is {type(item).__name__}; only integers and strings are allowed")
    return _SPELLING.encode(dict(value)).encode("ascii")


def output_digest(choice_digests: list[bytes]) -> str:
    """The digest of an attempt's output from the sha256 of each choice's text (or vector), in order."""
    return sha256(b"".join(choice_digests)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptBody:
    """Times are integer milliseconds since the epoch. Raises ReceiptError for values out of bounds."""

    job_id: str
    attempt: int
    worker_id: str
    model: str
    engine: str
    prompt_tokens: int
    output_tokens: int  # of this attempt alone: what an earlier one delivered is not counted
    started_at: int
    ended_at: int
    output_sha256: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not field.type:
                raise ReceiptError(f"`{field.name}` must be {field.type}, not {type(value).__name__}")
            if isinstance(value, int) and not 0 <= value <= INTEGER_MAX:
                raise ReceiptError(f"`{field.name}` is out of range")
            if isinstance(value, str) and not 0 < len(value) <= TEXT_CHARS_MAX:
                raise ReceiptError(f"`{field.name}` must have 1 to {TEXT_CHARS_MAX} characters")
            if isinstance(value, str) and not value.isprintable():
                raise ReceiptError(f"`{field.name}` holds characters that cannot be printed")
        if not _DIGEST.fullmatch(self.output_sha256):
            raise ReceiptError("`output_sha256` must be 64 lower-case hex digits")

    def encode(self) -> bytes:
        return canonical_json({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def decode(cls, body: bytes) -> "ReceiptBody":
        """The receipt in these bytes; raises ReceiptError unless encoding it again gives the same bytes."""
        if len(body) > BODY_BYTES_MAX:
            raise ReceiptError(f"a receipt has at most {BODY_BYTES_MAX} bytes, this one {len(body)}")
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ReceiptError(f"a receipt must be JSON: {error}") from None
        names = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or value.keys() != names:
            raise ReceiptError(f"a receipt has exactly the fields {', '.join(sorted(names))}")
        receipt = cls(**value)
        if receipt.encode() != body:
            raise ReceiptError("a receipt must be in canonical JSON")
        return receipt


def sign(private_key: Ed25519PrivateKey, body: bytes) -> bytes:
    return private_key.sign(body)


def verify(public_key: bytes, body: bytes, signature: bytes) -> bool:
    """Whether the signature over the body was made by the key (raw, 32 bytes). Never raises.

    libsodium takes half the time of OpenSSL. They differ on keys and signatures that nobody makes by the
    book; what it refuses OpenSSL is asked, so that nothing in an older book fails that was once taken.
    """
    try:
        crypto_sign_open(signature + body, public_key)
    except (CryptoError, ValueError):
        return len(signature) == SIGNATURE_BYTES and _fits_openssl(public_key, body, signature)
    return len(signature) == SIGNATURE_BYTES


def _fits_openssl(public_key: bytes, body: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, body)
    except (InvalidSignature, ValueError):
        return False
    return True
