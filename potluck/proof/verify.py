"""From the first line of an export to the last: what is the first thing that does not hold, if anything?

Nothing is believed that is not recomputed or signed: hashes from the records' own bytes, balances from the
postings, charges from the details, signatures by the workers' keys and the pool's. Memory grows with jobs and
accounts, not with the file.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from potluck.chain import GENESIS
from potluck.proof import lines
from potluck.proof.books import Books
from potluck.proof.evidence import STATES, Evidence
from potluck.proof.lines import (
    HASH,
    EntryLine,
    Fault,
    HeadLine,
    PoolLine,
    ReceiptLine,
    WorkerLine,
    decoded,
    head_of,
    object_of,
    openings,
    pool_of,
    shown,
    worker_of,
)
from potluck.proof.pages import Keys, Page, Record, blocks, pages, wanted_processes
from potluck.receipts import verify as signature_fits

HEAD_BYTES_MAX: Final = 64 * 1024
ORDER: Final[dict[type[Record], str]] = {
    WorkerLine: "worker",
    EntryLine: "entry",
    ReceiptLine: "receipt",
    HeadLine: "head",
}
MANY: Final = {"worker": "workers", "entry": "entries", "receipt": "receipts", "head": "heads"}
_STAGES: Final = {kind: place for place, kind in enumerate(ORDER)}
_HASH_BYTES: Final = 32

Progress = Callable[[int, int], None]  # records done, of how many


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What an export without a fault says; amounts in microcredits.

    `receipts`: how many of each state. `missing`: paid attempts without any receipt, `unpaid`:
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
        pool = pool_of(1, object_of(1, _line(file, 1) or b"{}"))
        if key is not None and bytes.fromhex(pool.public_key) != key:
            raise Fault(
                "line",
                1,
                f"it names the public key {pool.public_key}, but the pool's is known here as {key.hex()}:"
                " this is the export of another pool, or of one that pretends to be it",
            )
        workers = _workers(file)
        walk = _Walk(pool, key or bytes.fromhex(pool.public_key), workers, opened)
        keys = Keys(walk.key, {worker.id: worker.receipt_key for worker in workers.values()}, thorough)
        count = wanted_processes(os.fstat(file.fileno()).st_size, processes)
        with _uncollected(), closing(pages(blocks(file), keys, count)) as found:
            for page in found:
                walk.turn(page)
                if progress is not None:
                    progress(walk.line, walk.expected)
        walk.end()
        if saved is not None:
            walk.check_saved(saved)
    return walk.summary(key_from_file=key is None, saved=saved)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looking for cycles among the records: there are none, and the search takes a fifth of it."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _line(file: IO[bytes], number: int) -> bytes:
    """Raises Fault if it is too long or has no end."""
    line = file.readline(lines.LINE_BYTES_MAX)
    if len(line) >= lines.LINE_BYTES_MAX:
        raise Fault("line", number, f"it is longer than {lines.LINE_BYTES_MAX} bytes")
    if line and not line.endswith(b"\n"):
        raise Fault("line", number, "it has no end: the file was cut off")
    return line


def _workers(file: IO[bytes]) -> dict[str, WorkerLine]:
    """By id; what follows them is left in the file. Their keys are needed before anything is checked."""
    found: dict[str, WorkerLine] = {}
    while True:
        before, number = file.tell(), len(found) + 2
        line = _line(file, number)
        value = object_of(number, line) if line else {}
        if value.get("type") != "worker":
            file.seek(before)
            return found
        worker = worker_of(number, value)
        if worker.id in found:
            raise Fault("line", number, f"the worker {shown(worker.id)} stands there twice")
        found[worker.id] = worker


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

    def extend(self, kind: str, record: EntryLine | ReceiptLine) -> None:
        """Raises Fault unless the record follows the one before and is right by itself."""
        here = self.length + 1
        if record.number != here:
            raise Fault(kind, here, f"it is missing: number {record.number} stands in its place")
        if record.previous != self.last:
            raise Fault(
                kind, here, "it does not carry the hash of the one before: something was changed there"
            )
        if record.wrong is not None:
            raise Fault(kind, here, record.wrong)
        self.hashes += bytes.fromhex(record.hash)
        self.last = record.hash


@dataclass(slots=True)
class _Walk:
    """`key`: the pool's, raw; `line`: the number of the last line that was taken."""

    pool: PoolLine
    key: bytes
    workers: dict[str, WorkerLine]
    openings: dict[str, int]
    line: int = field(init=False)
    stage: int = 0
    entries: _Chain = field(default_factory=_Chain)
    receipts: _Chain = field(default_factory=_Chain)
    heads: int = 0
    last_head: HeadLine | None = None
    signatures: int = 0
    uncountersigned: int = 0
    books: Books = field(init=False)
    evidence: Evidence = field(init=False)

    def __post_init__(self) -> None:
        self.line = 1 + len(self.workers)
        owners = {worker.id: worker.account for worker in self.workers.values()}
        self.books = Books(self.pool.account, owners, self.openings)
        self.evidence = Evidence(owners, self.books.jobs, self.books.parts)

    @property
    def expected(self) -> int:
        return 1 + sum(self.pool.counts.values())

    def turn(self, page: Page) -> None:
        """Raises Fault with the first thing on the page that does not hold."""
        for record in page.records:
            self._take(record)
        self.signatures += page.signatures
        if (fault := page.fault) is not None:  # it is of the record that would have been next
            number = self.line + 1 if fault.kind == "line" else self._count()[fault.kind] + 1
            raise Fault(fault.kind, number, fault.what)

    def _take(self, record: Record) -> None:
        stage = _STAGES[type(record)]
        if stage < self.stage:
            kinds = list(ORDER.values())
            raise Fault(
                "line",
                self.line + 1,
                f"a line of type {kinds[stage]} stands behind those of {MANY[kinds[self.stage]]}",
            )
        self.stage = stage
        match record:
            case EntryLine():
                self.entries.extend("entry", record)
                self.books.take(record)
            case ReceiptLine():
                self._receipt(record)
            case HeadLine():
                self._head(record)
        self.line += 1

    def _receipt(self, receipt: ReceiptLine) -> None:
        self.receipts.extend("receipt", receipt)
        if not receipt.countersigned:
            if receipt.number != self.uncountersigned + 1:
                raise Fault("receipt", receipt.number, "it is not countersigned by the pool's key")
            self.uncountersigned += 1  # only the oldest ones, from before the pool signed them
        self.evidence.take(receipt)

    def _head(self, head: HeadLine) -> None:
        number = self.heads + 1
        self._lies(head, "head", number)
        if head.wrong is not None:
            raise Fault("head", number, head.wrong)
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
        if not signature_fits(self.key, head.signed, head.signature):
            raise Fault("saved head", head.number, "it is not signed by the pool's key")
        self._lies(head, "saved head", head.number)

    def _count(self) -> dict[str, int]:
        return {
            "worker": len(self.workers),
            "entry": self.entries.length,
            "receipt": self.receipts.length,
            "head": self.heads,
        }

    def end(self) -> None:
        """Raises Fault if something that the first line promised is not here."""
        for kind, count in self._count().items():
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
            signatures=self.signatures,
            saved_head=None if saved is None else saved.number,
        )
