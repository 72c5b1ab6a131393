"""The lines of an export: JSON with bounds, and what each may hold.

The first line is the pool's, then workers' receipt keys, entries, receipts, heads. Whatever a file holds, a
line is either one of these or a `Fault` that names it; nothing else is ever raised.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic_core import from_json, to_json

from potluck import chain

FORMAT: Final = 1
LINE_BYTES_MAX: Final = 8 << 20
INTEGER_MAX: Final = 2**63 - 1  # what the pool's database holds
CHARS_MAX: Final = 512  # of an id, a name, a time
SHOWN_CHARS_MAX: Final = 80
HASH = re.compile(r"[0-9a-f]{64}")
SIGNATURE = re.compile(r"[0-9a-f]{128}")
_HEX = re.compile(r"([0-9a-f]{2}){0,256}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


class Fault(Exception):  # noqa: N818 -- named for what it is: the first thing that is wrong
    """`kind` and `number` name the record: line, entry, receipt or head."""

    def __init__(self, kind: str, number: int, what: str) -> None:
        super().__init__(f"{kind} {number}: {what}")
        self.kind, self.number, self.what = kind, number, what


@dataclass(frozen=True, slots=True)
class PoolLine:
    """Whose ledger it is, and for whom it was exported. `account`: whose details are in clear."""

    name: str
    public_key: str
    exported_at: str
    account: str
    counts: Mapping[str, int]


class WorkerLine(NamedTuple):
    """`account`: its owner's; `receipt_key`: raw Ed25519."""

    id: str
    account: str
    receipt_key: bytes


class EntryLine(NamedTuple):
    """`postings`: [account, bucket, microcredits]. `details` is None where only their digest is here.

    `wrong`, here and below: what does not hold in the record by itself, whatever stands before it.
    """

    number: int
    id: str
    code: str
    job: str | None
    postings: list[list[Any]]
    details: str | None
    previous: str
    hash: str
    wrong: str | None = None


class Said(NamedTuple):
    """What a worker signed, as far as the ledger depends on it."""

    job: str
    attempt: int
    worker: str
    engine: str
    output_tokens: int


class ReceiptLine(NamedTuple):
    number: int
    worker: str
    state: str
    countersigned: bool
    previous: str
    hash: str
    said: Said | None = None  # there unless something is wrong
    wrong: str | None = None


class HeadLine(NamedTuple):
    number: int
    hash: str
    receipts_number: int
    receipts_hash: str
    at: str
    signature: bytes
    wrong: str | None = None

    @property
    def signed(self) -> bytes:
        """What the pool signed of it."""
        return chain.head_bytes(
            number=self.number,
            hash=self.hash,
            receipts_number=self.receipts_number,
            receipts_hash=self.receipts_hash,
            at=self.at,
        )


def decoded(text: bytes | str) -> Any:
    """Strict JSON without floats and doubled names. Raises ValueError with a sentence's end.

    What is spelled as the pool spells it is read by a quick parser: where it writes the same bytes again, no
    name stood there twice and nothing was left out.
    """
    try:
        value = from_json(text, allow_inf_nan=False)
        if to_json(value) == (text if isinstance(text, bytes) else text.encode("utf-8")):
            return value
    except ValueError:
        pass  # the thorough one says what is wrong
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is no UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error.msg} at character {error.pos})") from None


def object_of(number: int, line: bytes) -> dict[str, Any]:
    """What stands in line `number`. Raises Fault."""
    try:
        value = decoded(line)
    except ValueError as error:
        raise Fault("line", number, shown(str(error))) from None
    if not isinstance(value, dict):
        raise Fault("line", number, "it is no JSON object")
    return value


def openings(path: Path) -> dict[str, int]:
    """The opening line of each account, wherever in the chain it was lent; what is wrong is found later."""
    found: dict[str, int] = {}
    with path.open("rb") as file:
        while line := file.readline(LINE_BYTES_MAX + 1):
            if b'/open/line"' not in line:
                continue
            try:
                value = decoded(line)
                account, _, amount = value["postings"][1]
                opening = value["type"] == "entry" and value["id"] == f"{account}/open/line"
                if opening and type(amount) is int:
                    found[account] = amount
            except (ValueError, KeyError, TypeError, IndexError):
                continue
    return found


def pool_of(line: int, value: dict[str, Any]) -> PoolLine:
    if value.get("type") != "pool":
        raise Fault("line", line, "an export begins with the line of its pool; this is none")
    if value.get("format") != FORMAT:
        seen = shown(repr(value.get("format")))
        raise Fault(
            "line", line, f"the export's format is {seen}; this version knows {FORMAT}. Upgrade Potluck."
        )
    take = _Taken("line", line, value)
    counts = value.get("counts")
    names = ("workers", "entries", "receipts", "heads")
    if not isinstance(counts, dict) or any(not _natural(counts.get(name)) for name in names):
        raise Fault("line", line, "`counts` must give the numbers of workers, entries, receipts and heads")
    return PoolLine(
        name=take.text("name"),
        public_key=take.digits("public_key", HASH),
        exported_at=take.time("exported_at"),
        account=take.text("account"),
        counts={name: counts[name] for name in names},
    )


def worker_of(line: int, value: dict[str, Any]) -> WorkerLine:
    take = _Taken("line", line, value)
    return WorkerLine(take.text("id"), take.text("account"), bytes.fromhex(take.digits("receipt_key", HASH)))


def entry_of(number: int, value: dict[str, Any]) -> EntryLine:
    """The entry that stands in the place `number`, its fields being what they should; nothing is hashed."""
    take = _Taken("entry", number, value)
    job, details = value.get("job"), value.get("details")
    if job is not None:
        job = take.text("job")
    if details is not None and type(details) is not str:
        raise Fault("entry", number, "`details` must be text")
    postings = value.get("postings")
    if not isinstance(postings, list) or not all(map(_is_posting, postings)):
        raise Fault("entry", number, "`postings` must be a list of [account, bucket, microcredits]")
    take.time("at")
    take.digits("details_sha256", HASH)
    return EntryLine(
        number=take.number("number"),
        id=take.text("id"),
        code=take.text("code"),
        job=job,
        postings=postings,
        details=details,
        previous=take.digits("previous", HASH),
        hash=take.digits("hash", HASH),
    )


def receipt_of(number: int, value: dict[str, Any]) -> ReceiptLine:
    """As `entry_of`; what its body says is not looked at."""
    take = _Taken("receipt", number, value)
    if type(value.get("body")) is not str:
        raise Fault("receipt", number, "`body` must be text")
    signature = value.get("signature")
    if type(signature) is not str or not _HEX.fullmatch(signature):
        raise Fault("receipt", number, "`signature` must be hex digits")
    take.time("at")
    return ReceiptLine(
        number=take.number("number"),
        worker=take.text("worker"),
        state=take.text("state"),
        countersigned=value.get("countersignature") != "" and bool(take.signature("countersignature")),
        previous=take.digits("previous", HASH),
        hash=take.digits("hash", HASH),
    )


def head_of(kind: str, number: int, value: dict[str, Any]) -> HeadLine:
    """`kind`: what to call it in a fault, `head` or `saved head`."""
    take = _Taken(kind, number, value)
    return HeadLine(
        number=take.number("number"),
        hash=take.digits("hash", HASH),
        receipts_number=take.number("receipts_number"),
        receipts_hash=take.digits("receipts_hash", HASH),
        at=take.time("at"),
        signature=take.signature("signature"),
    )


def shown(text: str) -> str:
    """What a file says, fit to be shown in a sentence."""
    printable = "".join(c if c.isprintable() else "?" for c in text[: SHOWN_CHARS_MAX + 1])
    return printable if len(printable) <= SHOWN_CHARS_MAX else printable[:SHOWN_CHARS_MAX] + "..."


class _Taken(NamedTuple):
    """The fields of one record, each checked as it is taken."""

    kind: str
    of: int
    value: dict[str, Any]

    def _fail(self, name: str, wanted: str) -> Fault:
        return Fault(self.kind, self.of, f"`{name}` must be {wanted}")

    def text(self, name: str) -> str:
        found = self.value.get(name)
        if type(found) is not str or not 0 < len(found) <= CHARS_MAX or not found.isprintable():
            raise self._fail(name, f"printable text of 1 to {CHARS_MAX} characters")
        return found

    def number(self, name: str) -> int:
        found = self.value.get(name)
        if type(found) is not int or not 0 <= found <= INTEGER_MAX:
            raise self._fail(name, "an integer from 0")
        return found

    def digits(self, name: str, pattern: re.Pattern[str]) -> str:
        found = self.value.get(name)
        if type(found) is not str or not pattern.fullmatch(found):
            raise self._fail(name, f"{64 if pattern is HASH else 128} lower-case hex digits")
        return found

    def signature(self, name: str) -> bytes:
        return bytes.fromhex(self.digits(name, SIGNATURE))

    def time(self, name: str) -> str:
        found = self.value.get(name)
        if type(found) is not str or not _TIME.fullmatch(found):
            raise self._fail(name, "a time like 2026-11-23T22:24:52.125Z")
        return found


def _is_posting(value: Any) -> bool:
    if type(value) is not list or len(value) != 3:
        return False
    account, bucket, amount = value
    return (
        type(account) is str
        and 0 < len(account) <= CHARS_MAX
        and account.isprintable()
        and type(bucket) is str
        and type(amount) is int
        and -INTEGER_MAX <= amount <= INTEGER_MAX
    )


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value <= INTEGER_MAX


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return value


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no whole number")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number, parse_float=_no_number)
