"""Files of the model store under their own names: who loads a folder looks for `config.json`."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from potluck.catalogue import File
from potluck.home import make_folder


def folder_of(files: Sequence[File], paths: Sequence[Path], cache: Path) -> Path:
    """A folder in the cache that holds these verified files by name, and is named by their digests.

    Hard links, or symbolic ones to another disk; copies where the system has neither. Raises OSError.
    """
    names = "\n".join(sorted(f"{file.sha256} {file.name}" for file in files))
    folder = make_folder(cache / "folders" / hashlib.sha256(names.encode()).hexdigest())
    for file, path in zip(files, paths, strict=True):
        _place(path, folder / file.name)
    return folder


def _place(path: Path, target: Path) -> None:
    """In one step: another worker of this machine may read or place the same."""
    if target.exists() and target.samefile(path):
        return
    new = target.with_name(f"{target.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    try:
        new.hardlink_to(path)
    except OSError:
        try:
            new.symlink_to(path.absolute())
        except OSError:
            shutil.copyfile(path, new)
    new.replace(target)
