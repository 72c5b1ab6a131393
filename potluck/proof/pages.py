"""An export in pages of whole lines: what each record shows by itself is checked page by page, on all cores.

That is nearly all of the work: the fields, the hash of the record's own bytes, the signatures (about 0.1 ms
each). What depends on the records before it is left to whoever takes the pages one after the other. What is
in flight is bounded, by count and by bytes.
"""

import gc
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import IO, Any, Final, NamedTuple

from potluck import chain
from potluck.proof import lines
from potluck.proof.evidence import REFUSED, said_of
from potluck.proof.lines import (
    EntryLine,
    Fault,
    HeadLine,
    ReceiptLine,
    WorkerLine,
    entry_of,
    head_of,
    object_of,
    receipt_of,
    shown,
    worker_of,
)
from potluck.receipts import verify as signature_fits

PAGE_BYTES: Final = 1 << 19
AHEAD: Final = 3  # pages in flight for each process
PROCESSES_MAX: Final = 16
ALONE_BYTES_MAX: Final = 1 << 21  # starting processes costs as much as checking so many bytes
CHANGED: Final = "it is not what its hash was made of: something in it was changed"

_KINDS: Final[tuple[type[WorkerLine | EntryLine | ReceiptLine | HeadLine], ...]] = (
    WorkerLine,
    EntryLine,
    ReceiptLine,
    HeadLine,
)
Record = WorkerLine | EntryLine | ReceiptLine | HeadLine


class Keys(NamedTuple):
    """Raw Ed25519 public keys. `thorough`: also each countersignature, which the signed end covers."""

    pool: bytes
    workers: Mapping[str, bytes]
    thorough: bool


class Page(NamedTuple):
    """The records of some lines, up to the first that is none; `fault` counts from the page's beginning."""

    records: list[Record]
    fault: Fault | None
    signatures: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes its records are plain tuples, which take half the time of named ones."""
        plain = [(_KINDS.index(type(record)), tuple(record)) for record in self.records]
        return _page, (plain, self.fault, self.signatures)


def _page(plain: list[tuple[int, tuple[Any, ...]]], fault: Fault | None, signatures: int) -> Page:
    return Page([_KINDS[kind]._make(values) for kind, values in plain], fault, signatures)


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Whole lines, but for one that is too long or cut off."""
    while block := file.read(PAGE_BYTES):
        yield block if block.endswith(b"\n") else block + file.readline(lines.LINE_BYTES_MAX + 1)


def pages(source: Iterable[bytes], keys: Keys, processes: int) -> Generator[Page]:
    """In the order of `source`; with 0 `processes` in this one. Close it to let go of what is in flight."""
    if not processes:
        for block in source:
            yield page_of(block, keys)
        return
    flying: deque[tuple[bytes, Future[Page]]] = deque()
    # Not forked: threads of whoever calls this would be copied half-way.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(keys,))
    try:
        for block in source:
            flying.append((block, _sent(executor, block)))
            if len(flying) > processes * AHEAD:
                yield _landed(*flying.popleft(), keys)
        while flying:
            yield _landed(*flying.popleft(), keys)
    finally:
        executor.shutdown(cancel_futures=True)


def wanted_processes(size: int, wanted: int | None = None) -> int:
    """For an export of `size` bytes; `wanted` instead of one for each core."""
    count = min(wanted or _cores(), PROCESSES_MAX)
    return count if count > 1 and size > ALONE_BYTES_MAX else 0


def page_of(block: bytes, keys: Keys) -> Page:
    """What each line is, checked as far as it can be by itself."""
    records: list[Record] = []
    seen: Counter[str] = Counter()
    signatures = 0
    whole = block.split(b"\n")
    ended = whole.pop() == b""
    for number, line in enumerate(whole if ended else block.split(b"\n"), 1):
        try:
            if len(line) >= lines.LINE_BYTES_MAX:
                raise Fault("line", number, f"it is longer than {lines.LINE_BYTES_MAX} bytes")
            if not ended and number > len(whole):
                raise Fault("line", number, "it has no end: the file was cut off")
            value = object_of(number, line)
            kind = str(value.get("type"))
            if (make := _MAKE.get(kind)) is None:
                raise Fault("line", number, f"its type is none of {', '.join(_MAKE)}")
            seen[kind] += 1
            record, checked = make(number if kind == "worker" else seen[kind], value, keys)
        except Fault as fault:
            return Page(records, fault, signatures)
        records.append(record)
        signatures += checked
    return Page(records, None, signatures)


def _worker(number: int, value: dict[str, Any], _: Keys) -> tuple[WorkerLine, int]:
    return worker_of(number, value), 0


def _entry(number: int, value: dict[str, Any], _: Keys) -> tuple[EntryLine, int]:
    entry = entry_of(number, value)
    covered = chain.entry_bytes(
        number=entry.number,
        at=value["at"],
        id=entry.id,
        code=entry.code,
        job=entry.job,
        postings=entry.postings,
        details_sha256=value["details_sha256"],
        previous=entry.previous,
    )
    if chain.hash_of(covered) != entry.hash:
        return entry._replace(wrong=CHANGED), 0
    if entry.details is not None and not _is_digest_of(entry.details, value["details_sha256"]):
        return entry._replace(wrong=f"{shown(entry.id)} has other details than it was made with"), 0
    return entry, 0


def _receipt(number: int, value: dict[str, Any], keys: Keys) -> tuple[ReceiptLine, int]:
    receipt = receipt_of(number, value)
    body, worker = value["body"].encode("utf-8", "replace"), receipt.worker
    signature, countersignature = bytes.fromhex(value["signature"]), bytes.fromhex(value["countersignature"])
    covered = chain.receipt_bytes(
        number=receipt.number,
        at=value["at"],
        worker=worker,
        body=body,
        signature=signature,
        state=receipt.state,
        previous=receipt.previous,
    )
    if chain.receipt_hash(covered, countersignature) != receipt.hash:
        return receipt._replace(wrong=CHANGED), 0
    key = keys.workers.get(worker)
    if key is None:
        return receipt._replace(wrong=f"it is of {shown(worker)}, whose key is not here"), 0
    checked = 0
    if receipt.state != REFUSED:
        checked += 1
        if not signature_fits(key, body, signature):
            return receipt._replace(wrong=f"it is not signed by the key of {worker}"), checked
    if keys.thorough and countersignature:
        checked += 1
        if not signature_fits(keys.pool, chain.countersigned(chain.hash_of(covered)), countersignature):
            return receipt._replace(wrong="it is not countersigned by the pool's key"), checked
    try:
        return receipt._replace(said=said_of(value["body"])), checked
    except ValueError as error:
        return receipt._replace(wrong=str(error)), checked


def _head(number: int, value: dict[str, Any], keys: Keys) -> tuple[HeadLine, int]:
    head = head_of("head", number, value)
    right = signature_fits(keys.pool, head.signed, head.signature)
    return head if right else head._replace(wrong="it is not signed by the pool's key"), 1


_MAKE: Final[Mapping[str, Any]] = {"worker": _worker, "entry": _entry, "receipt": _receipt, "head": _head}


def _is_digest_of(text: str, digest: str) -> bool:
    try:
        return chain.digest(text) == digest
    except UnicodeEncodeError:  # half a character: no text, and of nothing that was signed
        return False


# -- in the other processes

_keys: Keys


def _begin(keys: Keys) -> None:
    global _keys  # noqa: PLW0603 -- sent once to each process, and not with each page
    _keys = keys
    gc.disable()  # records hold no cycles, and there are hundreds of thousands of them


def _read(block: bytes) -> Page:
    return page_of(block, _keys)


def _sent(executor: ProcessPoolExecutor, block: bytes) -> Future[Page]:
    try:
        return executor.submit(_read, block)
    except BrokenProcessPool as error:
        broken: Future[Page] = Future()
        broken.set_exception(error)
        return broken


def _landed(block: bytes, flying: Future[Page], keys: Keys) -> Page:
    """Where processes cannot be had or were killed, this one does their work: slower, not worse."""
    try:
        return flying.result()
    except BrokenProcessPool:
        return page_of(block, keys)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
