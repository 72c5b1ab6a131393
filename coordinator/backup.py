"""A whole pool in one folder: its books as of one moment, its authority and keys, its settings, its files.

    FOLDER/manifest.json    which paths of the coordinator's folder it has, and the sha256 of each
    FOLDER/objects/SHA256   their bytes

It is taken while the coordinator runs: the books are copied in one read transaction (SQLite's online backup,
sqlite.org/backup.html). Members' and models' files never change, so those that are there already are not
copied again, and one folder takes every night's backup. Files are copied before the books, and what is new
once more after them, so that what the books name is there. The manifest is replaced at the end, in one step:
a backup that breaks off leaves the one before.

A backup holds the pool's private keys and its members' files: it is closed to others, and should stay so.
"""

import hashlib
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import make_url

from coordinator import files, models, training_store
from coordinator.ca import AUTHORITY_FILE, SERVER_FILE
from coordinator.clock import rfc3339
from coordinator.keys import ADMIN_KEY_FILE
from coordinator.settings import SETTINGS_FILE, Settings
from potluck.home import SECRET_MODE, make_folder, replacing, sync_folder, write_secret
from potluck.version import version

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
OBJECTS: Final = "objects"
BOOKS: Final = "potluck.db"
MANIFEST_BYTES_MAX: Final = 256 << 20
_CHUNK_BYTES: Final = 1 << 20
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_STORES: Final = (models.ARTIFACTS_FOLDER, files.FOLDER, training_store.FOLDER)
_SINGLE: Final = (
    f"ca/{AUTHORITY_FILE}",
    f"ca/{SERVER_FILE}",
    ADMIN_KEY_FILE,
    SETTINGS_FILE,
    models.CATALOGUE_FILE,
)

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class BackupError(Exception):
    """Cannot be backed up or restored; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Item:
    """One file: where it lies in the coordinator's folder, and what is in it."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What a backup came to. `damaged`: artifacts whose bytes are not those of their names; left out."""

    manifest: "Manifest"
    damaged: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """`entries`: the number of the ledger's last entry, `hash` its hash."""

    pool: str
    version: str
    taken_at: str
    entries: int
    hash: str
    items: tuple[Item, ...]

    @property
    def size_bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    def encode(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises BackupError."""
        path = folder / MANIFEST
        try:
            if path.stat().st_size > MANIFEST_BYTES_MAX:
                raise BackupError(f"{path} is too large to be a manifest")
            found = json.loads(path.read_bytes())
            if found.pop("format") != FORMAT:
                raise BackupError(f"{path} was written by another version of Potluck; restore it with that")
            items = tuple(_item(item) for item in found.pop("items"))
            return cls(items=items, **found)
        except FileNotFoundError:
            raise BackupError(f"there is no backup in {folder}: it has no {MANIFEST}") from None
        except OSError as error:
            raise BackupError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackupError(f"{path} is damaged: {error}") from error


def back_up(settings: Settings, folder: Path, now: float, progress: Progress = lambda *_: None) -> Taken:
    """Into the folder, which may have an older backup of this pool. Raises BackupError, OSError."""
    books = books_of(settings)
    objects = make_folder(folder) / OBJECTS
    make_folder(objects)
    folder.chmod(0o700)
    before = _sources(settings.folder)
    total = sum(path.stat().st_size for path in before.values() if path.exists()) + books.stat().st_size
    copied: dict[str, Item] = {}
    damaged: list[str] = []
    done = 0
    for name, path in before.items():
        if (item := _keep(objects, name, path, damaged)) is not None:
            copied[name] = item
            progress(done := done + item.bytes, total)
    copied[BOOKS], entries, end = _copy_books(books, folder, objects)
    progress(done + copied[BOOKS].bytes, total)
    for name, path in _sources(settings.folder).items():
        if name in copied and name not in _SINGLE:
            continue
        if (item := _keep(objects, name, path, damaged)) is not None:
            copied[name] = item
    items = tuple(copied[name] for name in sorted(copied))
    made = Manifest(settings.pool_name, version(), rfc3339(now), entries, end, items)
    write_secret(folder / MANIFEST, made.encode())
    _prune(objects, {item.sha256 for item in items})
    return Taken(made, tuple(sorted(set(damaged))))


def restore(settings: Settings, folder: Path, progress: Progress = lambda *_: None) -> Manifest:
    """Into an empty home. Every byte is checked on its way; nothing is there until all of it is.

    Raises BackupError, OSError.
    """
    manifest = Manifest.read(folder)
    target = settings.folder
    if target.exists() and any(target.iterdir()):
        raise BackupError(
            f"{target} is not empty: restore into a home without a coordinator, or move it away"
        )
    if BOOKS not in {item.path for item in manifest.items}:
        raise BackupError(f"the backup in {folder} has no books")
    half = target.with_name(f"{target.name}.restoring")
    shutil.rmtree(half, ignore_errors=True)
    make_folder(half)
    done = 0
    try:
        for item in manifest.items:
            _bring(folder / OBJECTS / item.sha256, half / item.path, item)
            progress(done := done + item.bytes, manifest.size_bytes)
        if target.exists():
            target.rmdir()
        half.rename(target)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    sync_folder(target.parent)
    return manifest


def books_of(settings: Settings) -> Path:
    """The books' file. Raises BackupError where they are elsewhere or not there."""
    url = make_url(settings.database_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise BackupError(
            "the books are in PostgreSQL: back them up with pg_dump (docs/running.md has the commands), and"
            f" the folder {settings.folder} beside them"
        )
    path = Path(url.database)
    if not path.is_file():
        raise BackupError(f"there is no pool at {path}: `potluck coordinator start` makes one")
    return path


def _sources(home: Path) -> dict[str, Path]:
    """By path in the backup: all but the books, locks, caches, and what is half written."""
    found = {name: home / name for name in _SINGLE if (home / name).is_file()}
    for store in _STORES:
        if (home / store).is_dir():
            found |= {
                f"{store}/{path.name}": path
                for path in (home / store).iterdir()
                if _DIGEST.fullmatch(path.name)
            }
    return found


def _keep(objects: Path, name: str, path: Path, damaged: list[str]) -> Item | None:
    """Its bytes under their digest; None if it was deleted meanwhile, or is not what its name says."""
    known = path.name if _DIGEST.fullmatch(path.name) else ""
    try:
        size = path.stat().st_size
        if known and (objects / known).is_file() and (objects / known).stat().st_size == size:
            return Item(name, known, size)
        digest = _digest(path)
        if known not in ("", digest):
            damaged.append(name)
            return None
        with path.open("rb") as source, replacing(objects / digest, mode=SECRET_MODE) as copy:
            shutil.copyfileobj(source, copy, _CHUNK_BYTES)
            size = copy.tell()
    except FileNotFoundError:
        return None
    return Item(name, digest, size)


def _copy_books(books: Path, folder: Path, objects: Path) -> tuple[Item, int, str]:
    """Whole, in one read transaction; with the number and the hash of the last entry."""
    half = folder / f".{BOOKS}"
    half.unlink(missing_ok=True)
    try:
        reading = sqlite3.connect(f"file:{books.as_posix()}?mode=ro", uri=True)
        with closing(reading) as source, closing(sqlite3.connect(half)) as copy:
            half.chmod(SECRET_MODE)
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            newest = "SELECT number, hash FROM entries ORDER BY number DESC LIMIT 1"
            number, end = copy.execute(newest).fetchone() or (0, "")
        item = Item(BOOKS, _digest(half), half.stat().st_size)
        half.replace(objects / item.sha256)
        sync_folder(objects)
    except sqlite3.Error as error:
        raise BackupError(f"the books {books} cannot be copied: {error}") from error
    finally:
        half.unlink(missing_ok=True)
    return item, number, end


def _bring(source: Path, target: Path, item: Item) -> None:
    digest = hashlib.sha256()
    try:
        with source.open("rb") as file, replacing(target, mode=SECRET_MODE) as copy:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                copy.write(chunk)
            if digest.hexdigest() != item.sha256 or copy.tell() != item.bytes:
                raise BackupError(f"{source} is damaged: {item.path} cannot be restored from it")
    except FileNotFoundError:
        raise BackupError(f"the backup is incomplete: {item.path} is missing ({source})") from None


def _item(found: Any) -> Item:
    """Raises ValueError, KeyError or TypeError. Only paths that a backup writes are known."""
    item = Item(**found)
    store, _, name = item.path.partition("/")
    known = item.path in {*_SINGLE, BOOKS} or (store in _STORES and _DIGEST.fullmatch(name) is not None)
    if not known or not _DIGEST.fullmatch(item.sha256) or not isinstance(item.bytes, int):
        raise ValueError(f"it names {str(item.path)[:80]!r}, which is no file of a backup")
    return item


def _prune(objects: Path, kept: set[str]) -> None:
    for path in objects.iterdir():
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
