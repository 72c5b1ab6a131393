"""What workers and the pool have signed, as a client gets it."""

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A worker's signed statement of one attempt in its place in the pool's chain of receipts.

    `body` is the signed text, `signature` the worker's and `countersignature` the pool's, in base64.
    """

    number: int
    attempt: int
    worker: str
    state: str
    why: str | None = None
    at: str | None = None
    body: str = ""
    signature: str = ""
    previous: str = ""
    hash: str = ""
    countersignature: str = ""

    @property
    def claimed_tokens(self) -> int | None:
        """What the worker says that it delivered."""
        try:
            body = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        found = body.get("output_tokens") if isinstance(body, dict) else None
        return found if type(found) is int else None

    @property
    def countersigned(self) -> bool:
        return bool(self.countersignature)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerHead:
    """The ends of the ledger and of the receipts, signed by the pool; hashes, key and signature in hex."""

    pool: str
    public_key: str
    number: int
    hash: str
    receipts_number: int
    receipts_hash: str
    at: str
    reason: str = ""
    signature: str
