"""From the first line of an export to the last: what is the first thing that does not hold, if anything?

Nothing is believed that is not recomputed or signed: hashes from the records' own bytes, balances from the
postings, charges from the details, signatures by the workers' keys and the pool's. Memory grows with jobs and
accounts, not with the file.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from potluck import chain, receipts
from potluck.chain import GENESIS
from potluck.proof.books import Books
from potluck.proof.evidence import REFUSED, STATES, Evidence
from potluck.proof.lines import (
    HASH,
    Fault,
    HeadLine,
    PoolLine,
    decoded,
    entry_of,
    head_of,
    openings,
    pool_of,
    receipt_of,
    records,
    shown,
    worker_of,
)
from potluck.proof.signatures import Check, Signatures

HEAD_BYTES_MAX: Final = 64 * 1024
ORDER: Final = ("pool", "worker", "entry", "receipt", "head")
MANY: Final = {"worker": "workers", "entry": "entries", "receipt": "receipts", "head": "heads"}
_HASH_BYTES: Final = 32

Progress = Callable[[int, int], None]  # records done, of how many


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What an export without a fault says; amounts in microcredits.

    `receipts`: how many of each state. `missing`: payees of closed jobs without any receipt, `unpaid`:
    matched receipts of jobs that were refunded later or are still open, `free`: of jobs on own workers,
    `uncountersigned`: older than the pool's own signatures. `key_from_file`: nobody but the file itself
    says whose key this is.
    """

    pool: str
    public_key: str
    key_from_file: bool
    account: str
    exported_at: str
    entries: int
    jobs_closed: int
    jobs_open: int
    charged: int
    fees: int
    granted: int
    transferred: int
    charges_recomputed: int
    charges_not_recomputed: int
    receipts: dict[str, int]
    receipts_missing: int
    receipts_unpaid: int
    receipts_free: int
    receipts_uncountersigned: int
    heads: int
    signatures: int
    saved_head: int | None  # the entry at which a head that was saved earlier lies on this chain


def verify(
    path: Path,
    *,
    key: bytes | None = None,
    saved: HeadLine | None = None,
    processes: int | None = None,
    thorough: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Check all of the export. Raises Fault with the first thing that is wrong, and OSError.

    `key`: the pool's, raw Ed25519; without it the one in the file is taken, which proves only that the file
    agrees with itself. `saved`: a head from earlier that must lie on the chain.
    """
    opened = openings(path)
    with path.open("rb") as file:
        lines = records(file)
        number, first = next(lines, (1, {}))
        pool = pool_of(number, first)
        if key is not None and bytes.fromhex(pool.public_key) != key:
            raise Fault(
                "line",
                1,
                f"it names the public key {pool.public_key}, but the pool's is known here as {key.hex()}:"
                " this is the export of another pool, or of one that pretends to be it",
            )
        expected = (1 + thorough) * pool.counts["receipts"] + pool.counts["heads"]
        with Signatures(expected, processes) as signatures:
            walk = _Walk(pool, opened, signatures, key or bytes.fromhex(pool.public_key), thorough)
            try:
                for line, value in lines:
                    walk.take(line, value)
                    if progress is not None and not line % 1_000:
                        progress(line, walk.expected)
                    if signatures.failed:
                        break
            except Fault:
                if earlier := signatures.settle():
                    raise earlier from None
                raise
            if earlier := signatures.settle():
                raise earlier
            walk.end()
            if saved is not None:
                walk.check_saved(saved)
    return walk.summary(key_from_file=key is None, saved=saved)


def read_head(path: Path) -> tuple[HeadLine, str]:
    """A head that was saved earlier, and the public key that it names. Raises Fault, and OSError."""
    with path.open("rb") as file:
        data = file.read(HEAD_BYTES_MAX + 1)
    if len(data) > HEAD_BYTES_MAX:
        raise Fault("saved head", 0, f"{path} is longer than {HEAD_BYTES_MAX} bytes")
    try:
        value = decoded(data)
    except ValueError as error:
        raise Fault("saved head", 0, f"{path}: {shown(str(error))}") from None
    if not isinstance(value, dict):
        raise Fault("saved head", 0, f"{path} holds no head of a ledger")
    named = value.get("public_key")
    if type(named) is not str or not HASH.fullmatch(named):
        raise Fault("saved head", 0, f"{path} does not name its pool's public key")
    return head_of("saved head", 0, value), named


def head_signed(head: HeadLine) -> bytes:
    """What the pool signed of it."""
    return chain.head_bytes(
        number=head.number,
        hash=head.hash,
        receipts_number=head.receipts_number,
        receipts_hash=head.receipts_hash,
        at=head.at,
    )


def _is_digest_of(text: str, digest: str) -> bool:
    try:
        return chain.digest(text) == digest
    except UnicodeEncodeError:  # half a character: no text, and of nothing that was signed
        return False


@dataclass(slots=True)
class _Chain:
    """The hashes of one chain's records, by number."""

    hashes: bytearray = field(default_factory=bytearray)
    last: str = GENESIS

    @property
    def length(self) -> int:
        return len(self.hashes) // _HASH_BYTES

    def at(self, number: int) -> str:
        if number == 0:
            return GENESIS
        return self.hashes[(number - 1) * _HASH_BYTES : number * _HASH_BYTES].hex()

    def extend(self, kind: str, number: int, previous: str, said: str, covered: bytes) -> None:
        """Raises Fault unless the record follows the one before and is what its hash was made of."""
        here = self.length + 1
        if number != here:
            raise Fault(kind, here, f"it is missing: number {number} stands in its place")
        if previous != self.last:
            raise Fault(
                kind, number, "it does not carry the hash of the one before: something was changed there"
            )
        if chain.hash_of(covered) != said:
            raise Fault(kind, number, "it is not what its hash was made of: something in it was changed")
        self.hashes += bytes.fromhex(said)
        self.last = said


@dataclass(slots=True)
class _Walk:
    pool: PoolLine
    openings: dict[str, int]
    signatures: Signatures
    key: bytes
    thorough: bool = False  # also each countersignature, which the signed end of the chain covers
    stage: int = 0
    keys: dict[str, bytes] = field(default_factory=dict)  # of receipts, by worker
    owners: dict[str, str] = field(default_factory=dict)
    entries: _Chain = field(default_factory=_Chain)
    receipts: _Chain = field(default_factory=_Chain)
    heads: int = 0
    last_head: HeadLine | None = None
    uncountersigned: int = 0
    books: Books = field(init=False)
    evidence: Evidence = field(init=False)

    def __post_init__(self) -> None:
        self.books = Books(self.pool.account, self.owners, self.openings)
        self.evidence = Evidence(self.owners, self.books.jobs)

    @property
    def expected(self) -> int:
        return 1 + sum(self.pool.counts.values())

    def take(self, line: int, value: dict[str, Any]) -> None:
        kind = value.get("type")
        if type(kind) is not str or kind not in ORDER[1:]:
            raise Fault("line", line, f"its type is none of {', '.join(ORDER[1:])}")
        stage = ORDER.index(kind)
        if stage < self.stage:
            raise Fault("line", line, f"a line of type {kind} stands behind those of {ORDER[self.stage]}s")
        self.stage = stage
        match kind:
            case "worker":
                self._worker(line, value)
            case "entry":
                self._entry(value)
            case "receipt":
                self._receipt(value)
            case _:
                self._head(value)

    def _worker(self, line: int, value: dict[str, Any]) -> None:
        worker, account, key = worker_of(line, value)
        if worker in self.keys:
            raise Fault("line", line, f"the worker {shown(worker)} stands there twice")
        self.keys[worker], self.owners[worker] = key, account

    def _entry(self, value: dict[str, Any]) -> None:
        entry = entry_of(self.entries.length + 1, value)
        covered = chain.entry_bytes(
            number=entry.number,
            at=entry.at,
            id=entry.id,
            code=entry.code,
            job=entry.job,
            postings=[(account, bucket, amount) for account, bucket, amount in entry.postings],
            details_sha256=entry.details_sha256,
            previous=entry.previous,
        )
        self.entries.extend("entry", entry.number, entry.previous, entry.hash, covered)
        if entry.details is not None and not _is_digest_of(entry.details, entry.details_sha256):
            raise Fault("entry", entry.number, f"{shown(entry.id)} has other details than it was made with")
        self.books.take(entry)

    def _receipt(self, value: dict[str, Any]) -> None:
        receipt = receipt_of(self.receipts.length + 1, value)
        body = receipt.body.encode("utf-8", "replace")
        covered = chain.receipt_bytes(
            number=receipt.number,
            at=receipt.at,
            worker=receipt.worker,
            body=body,
            signature=receipt.signature,
            state=receipt.state,
            previous=receipt.previous,
        )
        chained = covered + receipt.countersignature  # as chain.receipt_hash has it
        self.receipts.extend("receipt", receipt.number, receipt.previous, receipt.hash, chained)
        key = self.keys.get(receipt.worker)
        if key is None:
            raise Fault("receipt", receipt.number, f"it is of {shown(receipt.worker)}, whose key is not here")
        if receipt.state != REFUSED:
            what = f"it is not signed by the key of {receipt.worker}"
            self.signatures.add(Check("receipt", receipt.number, what, key, body, receipt.signature))
        if not receipt.countersignature and receipt.number == self.uncountersigned + 1:
            self.uncountersigned += 1  # only the oldest ones, from before the pool signed them
        elif self.thorough or not receipt.countersignature:
            message = chain.countersigned(chain.hash_of(covered))
            what = "it is not countersigned by the pool's key"
            self.signatures.add(
                Check("receipt", receipt.number, what, self.key, message, receipt.countersignature)
            )
        self.evidence.take(receipt)

    def _head(self, value: dict[str, Any]) -> None:
        number = self.heads + 1
        head = head_of("head", number, value)
        self._lies(head, "head", number)
        what = "it is not signed by the pool's key"
        self.signatures.add(Check("head", number, what, self.key, head_signed(head), head.signature))
        self.heads, self.last_head = number, head

    def _lies(self, head: HeadLine, kind: str, number: int) -> None:
        """Raises Fault unless the head is on both chains as they are here."""
        for said, at, here, what in (
            (head.hash, head.number, self.entries, "entry"),
            (head.receipts_hash, head.receipts_number, self.receipts, "receipt"),
        ):
            if at > here.length:
                raise Fault(
                    kind, number, f"it is of {what} {at}, but the export ends with {what} {here.length}"
                )
            if here.at(at) != said:
                raise Fault(
                    kind, number, f"it signs another {what} {at} than the one here: the history was rewritten"
                )

    def check_saved(self, head: HeadLine) -> None:
        """Raises Fault unless the pool signed it and it lies on the chains: nothing before it was changed."""
        if not receipts.verify(self.key, head_signed(head), head.signature):
            raise Fault("saved head", head.number, "it is not signed by the pool's key")
        self._lies(head, "saved head", head.number)

    def end(self) -> None:
        """Raises Fault if something that the first line promised is not here."""
        found = {
            "worker": len(self.keys),
            "entry": self.entries.length,
            "receipt": self.receipts.length,
            "head": self.heads,
        }
        for kind, count in found.items():
            if (promised := self.pool.counts[MANY[kind]]) != count:
                raise Fault(
                    kind,
                    count + 1,
                    f"the first line promises {promised} {MANY[kind]}, and {count} are here: the file was"
                    " cut off or changed",
                )
        head = self.last_head
        if head is None or (head.number, head.receipts_number) != (self.entries.length, self.receipts.length):
            raise Fault(
                "head", self.heads + 1, "it is missing: the last head must be of the last entry and receipt"
            )

    def summary(self, *, key_from_file: bool, saved: HeadLine | None) -> Summary:
        totals, evidence = self.books.totals, self.evidence
        return Summary(
            pool=self.pool.name,
            public_key=self.key.hex(),
            key_from_file=key_from_file,
            account=self.pool.account,
            exported_at=self.pool.exported_at,
            entries=self.entries.length,
            jobs_closed=totals.closed,
            jobs_open=len(self.books.jobs) - totals.closed,
            charged=totals.charged,
            fees=totals.fees,
            granted=totals.granted,
            transferred=totals.transferred,
            charges_recomputed=totals.recomputed,
            charges_not_recomputed=totals.not_recomputed,
            receipts={state: evidence.states[state] for state in STATES},
            receipts_missing=evidence.missing(),
            receipts_unpaid=evidence.unpaid,
            receipts_free=evidence.free,
            receipts_uncountersigned=self.uncountersigned,
            heads=self.heads,
            signatures=self.signatures.checked,
            saved_head=None if saved is None else saved.number,
        )
