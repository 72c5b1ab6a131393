"""Sending a large file in parts: what a pool has got stays there, so that a cut one goes on where it was.

Until an upload is done, a small file under POTLUCK_HOME holds the key under which it was begun, which finds
it again. Which parts the pool has, the pool says.
"""

import contextlib
import hashlib
import io
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from potluck.errors import (
    InvalidRequest,
    LimitReached,
    NotFound,
    PermissionDenied,
    PotluckError,
    Unavailable,
    UnexpectedAnswer,
    Unreachable,
)
from potluck.home import home, write_atomic
from potluck.results import read
from potluck.transport import Transport, path_of

IN_PARTS_BYTES: Final = 64 << 20  # a larger file goes in parts
PART_BYTES: Final = 8 << 20  # what a cut connection loses at most
PART_BYTES_MAX: Final = 64 << 20
PARTS: Final = 1_000  # as many as this, parts become larger
FOLDER: Final = "uploads"
KEPT_S: Final = 7 * 86_400.0
NOTE_BYTES_MAX: Final = 4_096
KEPT: Final = "What was sent is kept for a while: the same command goes on where it was."
RETRY_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0)

T = TypeVar("T")
Progress = Callable[[int, int], None]  # bytes done, of how many


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    id: str
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Here:
    bytes: int = 0
    parts: tuple[_Part, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upload:
    id: str
    status: str
    file: Mapping[str, Any] | None = None
    potluck: _Here | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """One file for one pool. `went_on` is told how many bytes of how many were there already."""

    transport: Transport
    path: Path
    purpose: str
    expires_s: int | None = None
    progress: Progress = lambda *_: None
    went_on: Progress = lambda *_: None
    sleep: Callable[[float], None] = time.sleep

    def run(self) -> Any:
        """The file as the pool shows it. Raises PotluckError, OSError for a file that cannot be read."""
        with self.path.open("rb") as file:
            sha256, md5, size = _digests(file)
            note = _Note.of(self, sha256, size)
            upload = self._begun(note, size)
            try:
                if upload.status == "pending":
                    upload = self._completed(upload, self._sent(upload, file, note, size), md5)
            except (InvalidRequest, NotFound) as error:
                note.forget()
                self._give_up(upload)
                if error.code == "md5_mismatch":
                    message = f"{self.path} changed while it was being sent. Send it again."
                    raise InvalidRequest(message, code="file_changed") from None
                raise
        note.forget()
        return upload.file

    def _begun(self, note: "_Note", size: int) -> _Upload:
        """The upload of before, if it goes on or is done; else a new one."""
        body: dict[str, Any] = {
            "filename": self.path.name,
            "purpose": self.purpose,
            "bytes": size,
            "mime_type": "application/jsonl",
        }
        if self.expires_s is not None:
            body["expires_after"] = {"anchor": "created_at", "seconds": self.expires_s}
        for last_try in (False, True):
            note.keep()
            try:
                made = read(_Upload, self.transport.post("/v1/uploads", body, idempotency_key=note.key))
            except (InvalidRequest, PermissionDenied, LimitReached):
                note.forget()
                raise
            upload = read(_Upload, self.transport.get(path_of("/v1/uploads", made.id)))
            if upload.status == "pending" or upload.file is not None or last_try:
                return upload
            note.renew()
        raise AssertionError("the last try returns or raises")

    def _sent(self, upload: _Upload, file: io.BufferedReader, note: "_Note", size: int) -> list[str]:
        """The ids of all parts, those that were missing sent now."""
        here = upload.potluck or _Here()
        known = {part.sha256: part.id for part in here.parts}
        if here.bytes:
            self.went_on(here.bytes, size)
        ids, at = [], 0
        file.seek(0)
        while data := file.read(note.part_bytes):
            digest = hashlib.sha256(data).hexdigest()
            if digest not in known:
                known[digest] = self._part(upload, data, at, size)
            ids.append(known[digest])
            at += len(data)
            self.progress(at, size)
        return ids

    def _part(self, upload: _Upload, data: bytes, at: int, size: int) -> str:
        path = path_of("/v1/uploads", upload.id, "parts")

        def send() -> str:
            piece = _Watched(data, lambda done: self.progress(at + done, size))
            return read(_Part, self.transport.upload(path, {}, self.path.name, piece, name="data")).id

        return self._insistently(send)

    def _completed(self, upload: _Upload, part_ids: list[str], md5: str) -> _Upload:
        path, body = path_of("/v1/uploads", upload.id, "complete"), {"part_ids": part_ids, "md5": md5}
        done = self._insistently(lambda: read(_Upload, self.transport.post(path, body)))
        if done.file is None:
            raise UnexpectedAnswer("The pool completed the upload and made no file of it.")
        return done

    def _insistently(self, call: Callable[[], T]) -> T:
        """What is asked here is the same when done twice, and a connection may be away for a moment."""
        for wait_s in (*RETRY_S, None):
            try:
                return call()
            except (Unreachable, Unavailable, LimitReached) as error:
                if isinstance(error, LimitReached) and error.retry_after_s is None:
                    raise  # it will not help to wait
                if wait_s is None:
                    message = f"{error.message} {KEPT}"
                    raise type(error)(message, code=error.code, status=error.status) from None
                self.sleep(max(wait_s, error.retry_after_s or 0.0))
        raise AssertionError("the last try returns or raises")

    def _give_up(self, upload: _Upload) -> None:
        with contextlib.suppress(PotluckError):
            self.transport.post(path_of("/v1/uploads", upload.id, "cancel"), {})


@dataclass(slots=True, kw_only=True)
class _Note:
    """What is remembered of an upload. Where nothing can be written, it begins anew the next time."""

    path: Path
    key: str
    part_bytes: int

    @classmethod
    def of(cls, sending: Sending, sha256: str, size: int) -> "_Note":
        """That of an earlier run, or a new one. For another pool or purpose it is another upload."""
        what = (sending.transport.url, sending.purpose, sha256, sending.path.name, str(sending.expires_s))
        name = hashlib.sha256("\n".join(what).encode()).hexdigest()
        folder = home() / FOLDER
        _remove_old(folder)
        note = cls(path=folder / f"{name}.json", key=_new_key(), part_bytes=part_bytes_of(size))
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            with note.path.open("rb") as file:
                known = json.loads(file.read(NOTE_BYTES_MAX))
            note.key, note.part_bytes = (
                str(known["key"]),
                max(1, min(int(known["part_bytes"]), PART_BYTES_MAX)),
            )
        return note

    def keep(self) -> None:
        with contextlib.suppress(OSError):
            said = {"key": self.key, "part_bytes": self.part_bytes}
            write_atomic(self.path, json.dumps(said).encode(), durable=False)

    def renew(self) -> None:
        self.key = _new_key()

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


class _Watched(io.BytesIO):
    """Bytes that say how many of them were read."""

    def __init__(self, data: bytes, told: Callable[[int], None]) -> None:
        super().__init__(data)
        self._told = told

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._told(self.tell())
        return data


def part_bytes_of(size: int) -> int:
    """Small parts lose little; a large file gets larger ones, so that they do not become too many."""
    found = PART_BYTES
    while found < PART_BYTES_MAX and size > found * PARTS:
        found *= 2
    return found


def _digests(file: io.BufferedReader) -> tuple[str, str, int]:
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    while data := file.read(1 << 20):
        sha256.update(data)
        md5.update(data)
        size += len(data)
    return sha256.hexdigest(), md5.hexdigest(), size


def _new_key() -> str:
    return secrets.token_hex(16)


def _remove_old(folder: Path) -> None:
    before = time.time() - KEPT_S
    with contextlib.suppress(OSError):
        for path in folder.glob("*.json"):
            if path.stat().st_mtime < before:
                path.unlink(missing_ok=True)
