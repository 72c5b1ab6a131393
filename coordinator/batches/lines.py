"""The lines of a batch's input file: read some at once, and what each asks for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

import orjson

from coordinator.batches.batch import Batch
from coordinator.records import ApiKey, Member
from coordinator.submission import Submission

LINES_AT_ONCE: Final = 64
LINE_BYTES_MAX: Final = 16 << 20  # of a longer one the pieces count as lines, none of which is JSON


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


async def lines_of(path: Path) -> AsyncIterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number from 1; read in threads, some at once."""
    with path.open("rb") as file:
        pieces = iter(lambda: file.readline(LINE_BYTES_MAX + 1), b"")
        source = ((number, line) for number, line in enumerate(pieces, 1) if line.strip())
        while page := await asyncio.to_thread(_some, source):
            for number, line in page:
                yield number, line


def _some(source: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    return list(islice(source, LINES_AT_ONCE))


def custom_id_of(line: bytes) -> str:
    """Of a line that was checked before."""
    return str(orjson.loads(line)["custom_id"])
