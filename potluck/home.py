"""Where one installation keeps its files, and how secrets and state reach the disk.

Everything lies under `POTLUCK_HOME` (default: the platform's folder for user data). Nothing here is made
at import; a folder appears when something is first written into it.
"""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import platformdirs

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
FOLDER_MODE = 0o700


def home() -> Path:
    """The root of this installation: `POTLUCK_HOME`, or the platform's user data folder."""
    given = os.environ.get("POTLUCK_HOME", "")
    if given:
        return Path(given).expanduser().absolute()
    return Path(platformdirs.user_data_dir("potluck", appauthor=False))


def coordinator_home() -> Path:
    return home() / "coordinator"


def worker_home() -> Path:
    return home() / "worker"


def model_cache() -> Path:
    """Downloaded model files, named by sha256. `POTLUCK_MODEL_CACHE` lets several homes share them."""
    given = os.environ.get("POTLUCK_MODEL_CACHE", "")
    if given:
        return Path(given).expanduser().absolute()
    return home() / "cache" / "models"


def make_folder(path: Path) -> Path:
    """Makes the folder and its missing parents, closed to others where the system knows such modes."""
    path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    return path


def write_secret(path: Path, data: bytes) -> None:
    """Replaces the file in one step; at no moment can another user read it, or anybody a half of it."""
    write_atomic(path, data, mode=SECRET_MODE)


def write_atomic(path: Path, data: bytes, *, mode: int = PUBLIC_MODE, durable: bool = True) -> None:
    """Replaces the file in one step; with `durable` it is on the disk when this returns.

    Raises OSError (disk full, no permission); the old content then still stands.
    """
    with replacing(path, mode=mode, durable=durable) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, *, mode: int = PUBLIC_MODE, durable: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the old one's place when the block ends; by any exception in it, nothing changes.

    Raises OSError, as `write_atomic`.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    # O_EXCL and the mode at creation: no moment between making the file and closing it to others.
    binary = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | binary, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename inside the folder durable; Windows has no such call and needs none."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
