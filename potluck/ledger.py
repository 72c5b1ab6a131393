"""The ledger as a client gets it: its signed head, and all of it in a file that `potluck.proof` checks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from potluck.errors import InvalidRequest, UnexpectedAnswer, Unreachable
from potluck.home import replacing
from potluck.proof.lines import Fault, PoolLine, decoded, pool_of
from potluck.results import read
from potluck.signed import LedgerHead
from potluck.transport import Transport

FIRST_LINE_BYTES_MAX: Final = 64 * 1024

Progress = Callable[[int, int], None]  # lines done, of how many


class LedgerCalls:
    """The part of `Pool` that is about the ledger as a whole."""

    _transport: Transport

    def ledger_head(self) -> LedgerHead:
        """The ends of the books as they are now, signed. Kept, it shows later whether they were changed."""
        return read(LedgerHead, self._transport.get("/pool/v1/ledger/head"))

    def export_ledger(self, path: str | Path, progress: Progress | None = None) -> PoolLine:
        """Write the whole ledger to the file, which is there only when all of it is.

        Returns its first line: whose ledger it is, and the pool's public key. Raises PotluckError.
        """
        path = Path(path)
        with self._transport.download("/pool/v1/ledger/export") as chunks, _opened(path) as file:
            return _copied(chunks, file, progress)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror or error}.") from None


def _copied(chunks: Iterator[bytes], file: BinaryIO, progress: Progress | None) -> PoolLine:
    beginning, first, lines = b"", None, 0
    last = b""
    for chunk in chunks:
        file.write(chunk)
        lines += chunk.count(b"\n")
        last = chunk or last
        if first is None:
            beginning += chunk
            if b"\n" in beginning or len(beginning) > FIRST_LINE_BYTES_MAX:
                first = _first(beginning.partition(b"\n")[0])
        if first is not None and progress is not None:
            progress(lines, _lines_of(first))
    if first is None or lines != _lines_of(first) or not last.endswith(b"\n"):
        raise Unreachable("The export broke off before it was whole. Try again.", code="connection_broken")
    return first


def _first(line: bytes) -> PoolLine:
    try:
        value = decoded(line)
        return pool_of(1, value if isinstance(value, dict) else {})
    except (ValueError, Fault) as error:
        raise UnexpectedAnswer(f"What came is no export of a ledger: {error}.") from None


def _lines_of(pool: PoolLine) -> int:
    return 1 + sum(pool.counts.values())
