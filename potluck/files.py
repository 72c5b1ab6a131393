"""Files of one's own in a pool, as a client sees them: `Pool.files`."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from potluck.errors import InvalidRequest, Unreachable
from potluck.home import replacing
from potluck.results import read
from potluck.transport import Transport, path_of
from potluck.uploading import IN_PARTS_BYTES, Progress, Sending

PAGE: Final = 1_000

Purpose = Literal["fine-tune", "batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFile:
    """Times are seconds since the epoch, as the OpenAI API has them here."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    sha256: str
    expires_at: int | None = None


class FileCalls:
    """Every method raises PotluckError and nothing else."""

    def __init__(self, transport: Transport, sleep: Callable[[float], None] = time.sleep) -> None:
        self._transport, self._sleep = transport, sleep

    def upload(
        self,
        path: str | Path,
        purpose: Purpose = "fine-tune",
        *,
        expires_s: int | None = None,
        progress: Progress | None = None,
        in_parts: bool | None = None,
        went_on: Progress | None = None,
    ) -> PoolFile:
        """Send a file, a piece at a time. `expires_s`: it is deleted so long after it was made.

        `in_parts` (None: if it is larger than 64 MiB): when it is cut, the same call goes on where it was, in
        another process with the same POTLUCK_HOME too; `went_on` is told how many bytes of all were there.
        """
        path = Path(path)
        try:
            size = path.stat().st_size
            if size and (size > IN_PARTS_BYTES if in_parts is None else in_parts):
                sending = Sending(
                    transport=self._transport,
                    path=path,
                    purpose=purpose,
                    expires_s=expires_s,
                    progress=progress or _ignored,
                    went_on=went_on or _ignored,
                    sleep=self._sleep,
                )
                return _read(sending.run())
            file = path.open("rb")
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}.") from None
        fields: dict[str, str] = {"purpose": purpose}
        if expires_s is not None:
            fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(expires_s)}
        with file:
            watched = _Watched(file, progress)
            return _read(self._transport.upload("/v1/files", fields, path.name, watched))

    def list(self, purpose: str | None = None) -> Iterator[PoolFile]:
        """All of them, the newest first."""
        asked: dict[str, str | int] = {"limit": PAGE} | ({"purpose": purpose} if purpose else {})
        while True:
            page = self._transport.get("/v1/files", asked)
            files = [_read(one) for one in page["data"]]
            yield from files
            if not files or not page.get("has_more"):
                return
            asked["after"] = files[-1].id

    def get(self, file_id: str) -> PoolFile:
        return _read(self._transport.get(path_of("/v1/files", file_id)))

    def delete(self, file_id: str) -> None:
        self._transport.delete(path_of("/v1/files", file_id))

    def content(self, file_id: str) -> bytes:
        """All of it at once: for files that are known to be small."""
        with self._transport.download(path_of("/v1/files", file_id, "content")) as chunks:
            return b"".join(chunks)

    def download(self, file_id: str, path: str | Path, *, progress: Progress | None = None) -> PoolFile:
        """Write its bytes to `path`, which is there only when all of them are and their digest is right."""
        known, digest, done = self.get(file_id), hashlib.sha256(), 0
        with (
            self._transport.download(path_of("/v1/files", file_id, "content")) as chunks,
            _opened(Path(path)) as file,
        ):
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, known.bytes)
            if digest.hexdigest() != known.sha256:
                raise Unreachable("What came is not the whole file. Try again.", code="connection_broken")
        return known


class _Watched:
    """A file that says how far it was read."""

    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self._file, self._progress = file, progress
        self._size = os.fstat(file.fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if self._progress is not None:
            self._progress(self._file.tell(), self._size)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def fileno(self) -> int:
        return self._file.fileno()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror or error}.") from None


def _ignored(_done: int, _total: int) -> None:
    """Nobody asked."""


def _read(data: Any) -> PoolFile:
    own = data.get("potluck") if isinstance(data, dict) else None
    return read(PoolFile, {**data, **own} if isinstance(own, dict) else data)
