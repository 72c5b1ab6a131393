"""The lines of a batch's input file: read some at once, and what each asks for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Final, Protocol

import orjson

from coordinator.batches.batch import Batch
from coordinator.records import ApiKey, Member
from coordinator.submission import Submission

LINES_AT_ONCE: Final = 64
PAGE_BYTES: Final = 1 << 20
BOM: Final = b"\xef\xbb\xbf"  # of editors on Windows


class LineRefused(Exception):  # noqa: N818 -- named for what happened
    """The line is no request that this batch could make."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param


class Understand(Protocol):
    """A line of the input file as its custom id and the job it asks for. Raises LineRefused."""

    def __call__(
        self, batch: Batch, member: Member, key: ApiKey, line: bytes
    ) -> Awaitable[tuple[str, Submission]]: ...


async def lines_of(path: Path, bytes_max: int) -> AsyncIterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number from 1; read in threads, some at once.

    Of a line longer than `bytes_max` the pieces count as lines, none of which is taken.
    """
    with path.open("rb") as file:
        pieces = iter(lambda: file.readline(bytes_max + 1), b"")
        source = enumerate(pieces, 1)
        while page := await asyncio.to_thread(_some, source):
            for number, line in page:
                bare = line.removeprefix(BOM) if number == 1 else line
                if bare.strip():
                    yield number, bare


def _some(source: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Up to LINES_AT_ONCE of them, and not much more than PAGE_BYTES."""
    page: list[tuple[int, bytes]] = []
    size = 0
    for number, line in source:
        page.append((number, line))
        size += len(line)
        if len(page) >= LINES_AT_ONCE or size >= PAGE_BYTES:
            break
    return page


def custom_id_of(line: bytes) -> str:
    """Of a line that was checked before."""
    return str(orjson.loads(line)["custom_id"])
