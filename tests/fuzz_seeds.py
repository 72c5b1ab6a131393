"""What the fuzzed parsers take, made by the code's own writers, and how changed bytes are sealed again.

A checksum, a signature or a length before a value refuses nearly everything that is changed behind it. So of some
parsers the value inside is changed, and then sealed: hashed, signed or measured as an attacker would do who has
the key. `python tests/fuzz_seeds.py` writes the export anew, out of books that the real core makes.
"""

import asyncio
import base64
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fixtures_proof import again, of, open_books, small_life, write

from coordinator.ca import CertificateAuthority
from coordinator.core.jobs import WorkerId
from potluck import deltas, lora
from potluck.identity import JoinToken, WorkerIdentity
from potluck.linears import Linear

EXPORT_FILE = Path(__file__).parent / "data" / "export.jsonl"
NOW = 1_790_000_000.0
URL = "http://pool.test"
BLOCK_S = b"-----BEGIN"


# -- certificates -----------------------------------------------------------------------------------------


class Issuer:
    """A pool's authority, the certificate of a worker of it, and the answer to that worker's enrolment."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory(prefix="potluck-fuzz-") as folder:
            self.ca = CertificateAuthority.open(Path(folder), "kitchen", NOW)
        self.identity = WorkerIdentity.generate()
        self.token = JoinToken.create(self.ca.fingerprint())
        self.pem = self.ca.sign_worker(self.identity.csr(), WorkerId("wrk_1"), NOW).pem
        self.fields = x509.load_pem_x509_certificate(self.pem).tbs_certificate_bytes

        self.wish = x509.load_pem_x509_csr(self.identity.csr()).tbs_certrequest_bytes

    def sealed(self, fields: bytes) -> bytes:
        """These fields (TBSCertificate, RFC 5280), signed by the authority; its own certificate follows."""
        return _signed("CERTIFICATE", fields, self.ca._key) + self.ca.certificate_pem

    def asked(self, wish: bytes) -> bytes:
        """This wish (CertificationRequestInfo, RFC 2986), signed by the worker."""
        return _signed("CERTIFICATE REQUEST", wish, self.identity.tls_key)

    @property
    def ca_der(self) -> bytes:
        return self.ca.certificate.public_bytes(Encoding.DER)

    @property
    def point(self) -> bytes:
        """The worker's public key, as it stands in its certificate."""
        key = self.identity.tls_key.public_key()
        return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def answer(self, ca: bytes = b"") -> bytes:
        values = {
            "worker_id": "wrk_1", "name": "rig", "member": "bob", "pool": "kitchen", "grpc": "a.test:8421",
            "public_key": self.ca.public_key.hex(), "certificate": self.pem.decode(),
            "ca": (ca or self.ca.certificate_pem).decode(),
        }  # fmt: skip
        return json.dumps(values).encode()


def _der(tag: int, value: bytes) -> bytes:
    size = len(value)
    digits = size.to_bytes((size.bit_length() + 7) // 8)
    length = bytes([size]) if size < 128 else bytes([0x80 | len(digits)]) + digits
    return bytes([tag]) + length + value


def _signed(what: str, fields: bytes, key: EllipticCurvePrivateKey) -> bytes:
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256, as in the fields
    signature = _der(0x03, b"\0" + key.sign(fields, ECDSA(SHA256())))
    return pem(what, _der(0x30, fields + algorithm + signature))


def pem(what: str, der: bytes) -> bytes:
    return f"-----BEGIN {what}-----\n{base64.encodebytes(der).decode()}-----END {what}-----\n".encode()


def certificate_and_ca(data: bytes) -> tuple[bytes, bytes]:
    """As they lie in two files: what stands before the second block, and from there on."""
    at = data.find(BLOCK_S, len(BLOCK_S))
    return (data, data) if at < 0 else (data[:at], data[at:])


# -- tensors: a header in JSON, a line's end, the arrays --------------------------------------------------


def measured(data: bytes) -> bytes:
    """As safetensors: the header's length before it."""
    header, _, arrays = data.partition(b"\n")
    return struct.pack("<Q", len(header)) + header + arrays


def _apart(stored: bytes) -> bytes:
    (length,) = struct.unpack("<Q", stored[:8])
    return stored[8 : 8 + length] + b"\n" + stored[8 + length :]


def adapters() -> tuple[bytes, ...]:
    made = lora.initial(lora.shapes([Linear(module="self_attn.q_proj", inputs=4, outputs=4)], 1, 2), seed=1)
    return tuple(_apart(lora.encode(made, bfloat16=rounded)) for rounded in (False, True))


def changes() -> tuple[bytes, ...]:
    values = np.linspace(-1, 1, 130, dtype=np.float32).reshape(10, 13)
    return (_apart(deltas.encode({"a": values})), _apart(deltas.encode({"a": values[:1], "b": 0 * values})))


# -- an export --------------------------------------------------------------------------------------------

POOL_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def chained(data: bytes) -> bytes:
    """Hashed and signed again by the pool's own key, as far as the lines can be read."""
    try:
        lines: list[dict[str, Any]] = [json.loads(line) for line in data.splitlines()]
        lines[0]["public_key"] = POOL_KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
        again(lines, POOL_KEY.sign)
        return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
    except Exception:  # a line is no line any more: it is read as it is
        return data


def export_lines() -> tuple[bytes, ...]:
    """One of each kind."""
    lines = [json.loads(line) for line in EXPORT_FILE.read_bytes().splitlines()]
    kinds = ("pool", "worker", "entry", "receipt", "head")
    return tuple(json.dumps(of(lines, kind)[-1]).encode() for kind in kinds)


def saved_head() -> bytes:
    lines = [json.loads(line) for line in EXPORT_FILE.read_bytes().splitlines()]
    return json.dumps(of(lines, "head")[-1] | {"public_key": lines[0]["public_key"]}).encode()


async def _write_export() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with open_books(Path(folder)) as books:
            await small_life(books)
            write(EXPORT_FILE, await books.export())


# -- configurations of models -----------------------------------------------------------------------------

_DENSE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 16}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8, "intermediate_size": 16}
CONFIGS = tuple(
    json.dumps(config).encode()
    for config in (
        _DENSE | {"model_type": "llama", "intermediate_size": 16, "num_key_value_heads": 1, "head_dim": 4},
        _DENSE | {"model_type": "mixtral", "intermediate_size": 16, "num_local_experts": 4} | _EXPERTS,
        _DENSE
        | _EXPERTS
        | {"model_type": "qwen2_moe", "num_experts": 4, "decoder_sparse_step": 2, "mlp_only_layers": [0]}
        | {"shared_expert_intermediate_size": 8},
        _DENSE
        | _EXPERTS
        | {"model_type": "deepseek_v3", "qk_rope_head_dim": 2, "qk_nope_head_dim": 2, "v_head_dim": 2}
        | {"q_lora_rank": 4, "kv_lora_rank": 4, "n_routed_experts": 4, "first_k_dense_replace": 1},
    )
)

if __name__ == "__main__":
    asyncio.run(_write_export())
