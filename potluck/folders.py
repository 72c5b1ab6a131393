"""Files of the model store under their own names: who loads a folder looks for `config.json`.

A folder `<cache>/folders/<digest>` holds links to files of the store. The file `<digest>.names` beside it,
whose sha256 is that digest, says which file each name is: so a link, or the copy that stands for one, is
found again when its file goes.
"""

import hashlib
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from potluck.catalogue import FILES_MAX, File
from potluck.home import make_folder, write_atomic

FOLDERS: Final = "folders"
NAMES: Final = ".names"
NAMES_BYTES_MAX: Final = FILES_MAX * 256
_LINE: Final = re.compile(r"([0-9a-f]{64}) ([A-Za-z0-9][A-Za-z0-9._-]{0,127})")

Link = Callable[[Path, Path], object]


def symbolic(path: Path, new: Path) -> None:
    """Relative inside the cache, which another machine may see under another path.

    The link is made beside the file, and leads to it from where it is moved then: two folders further down.
    """
    new.symlink_to(Path("..", "..", path.name) if path.parent == new.parent else path.absolute())


def hard(path: Path, new: Path) -> None:
    new.hardlink_to(path)


# A symbolic link takes nothing of the disk when its file is gone. Windows wants a privilege for it; some file
# systems have neither kind.
LINKS: Final[tuple[Link, ...]] = (symbolic, hard, shutil.copyfile)


def folder_of(
    files: Sequence[File], paths: Sequence[Path], cache: Path, *, links: Sequence[Link] = LINKS
) -> Path:
    """A folder in the cache that holds these verified files by name, and is named by their digests.

    `links`: how, the best first. Raises OSError if none of them works. Whoever calls holds a mark on each
    file (potluck.store): the folder goes with the first of them.
    """
    names = "\n".join(sorted(f"{file.sha256} {file.name}" for file in files)).encode()
    folder = cache / FOLDERS / hashlib.sha256(names).hexdigest()
    write_atomic(folder.with_suffix(NAMES), names, durable=False)  # first: what is in a folder is known
    make_folder(folder)
    for file, path in zip(files, paths, strict=True):
        _place(path, folder / file.name, cache / f"{file.sha256}.link-{secrets.token_hex(4)}", links)
    return folder


def in_folders(cache: Path) -> Iterator[tuple[str, Path]]:
    """(sha256 of the file, where it has a name of its own), also where that no longer leads anywhere."""
    for record in (cache / FOLDERS).glob(f"*{NAMES}"):
        try:
            with record.open("rb") as file:
                text = file.read(NAMES_BYTES_MAX).decode(errors="replace")
        except OSError:  # another process has just removed it
            continue
        for line in text.split("\n"):
            if (found := _LINE.fullmatch(line)) is not None:
                yield found[1], record.with_suffix("") / found[2]


def remove_folder(folder: Path) -> None:
    """The record last: what could not be removed is found again."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        folder.with_suffix(NAMES).unlink(missing_ok=True)


def _place(path: Path, target: Path, new: Path, links: Sequence[Link]) -> None:
    """In one step: another worker of this machine may read or place the same."""
    if target.exists() and target.samefile(path):
        return
    for number, link in enumerate(links, 1):
        new.unlink(missing_ok=True)
        try:
            link(path, new)
            break
        except OSError:
            if number == len(links):
                raise
    new.replace(target)
