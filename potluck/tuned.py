"""The part of the SDK about tuned models: `Pool.tuned`.

Whoever may see one may ask it by its name, and take it along.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import quote as url_quote

from potluck.errors import InvalidRequest, NotFound, UnexpectedAnswer, Unreachable, UsageError
from potluck.home import replacing
from potluck.results import Model, read_all
from potluck.transport import Transport, path_of_name

MODELS: Final = "/pool/v1/models"
FILES_MAX: Final = 16  # of one model
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_IN_FOLDERS: Final = re.compile(r"[^A-Za-z0-9._-]+")

Progress = Callable[[int, int], None]  # bytes done, of how many


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    name: str
    bytes: int
    sha256: str


class TunedCalls:
    """Every method raises PotluckError and nothing else."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Sequence[Model]:
        """One's own, and those that others share."""
        found = read_all(Model, self._transport.get(MODELS))
        return [model for model in found if model.base is not None]

    def files(self, name: str) -> Sequence[ModelFile]:
        """Weights (safetensors), configuration and card, as peft reads them."""
        found = read_all(ModelFile, self._transport.get(path_of_name(MODELS, name, "files")))
        if not 0 < len(found) <= FILES_MAX or not all(_FILE_NAME.fullmatch(file.name) for file in found):
            raise UnexpectedAnswer(f"The pool names files of {name} that are none of a model.")
        return found

    def download(
        self, name: str, folder: str | Path, *, force: bool = False, progress: Progress | None = None
    ) -> Sequence[Path]:
        """Its files into a folder, which changes only when all of them are here and right.

        Raises UsageError if one of them is there already, unless `force`.
        """
        folder, files, done = Path(folder), self.files(name), 0
        there = [file.name for file in files if (folder / file.name).exists()]
        if there and not force:
            raise UsageError(f"{folder} has {', '.join(there)} already. Choose another folder, or force it.")
        total = sum(file.bytes for file in files)
        try:
            with ExitStack() as stack:
                opened = [stack.enter_context(replacing(folder / file.name)) for file in files]
                for file, target in zip(files, opened, strict=True):
                    for size in self._fetched(name, file, target):
                        if progress is not None:
                            progress(done + size, total)
                    done += file.bytes
        except OSError as error:
            raise InvalidRequest(f"{folder} cannot be written: {error.strerror or error}.") from None
        return [folder / file.name for file in files]

    def share(self, name: str, *, shared: bool = True) -> None:
        """Let every member of the pool ask it and take it along, or nobody else any more."""
        self._transport.post(path_of_name(MODELS, name, "share"), {"shared": shared})

    def delete(self, name: str) -> None:
        """For good."""
        if name in {"", ".", ".."}:
            raise NotFound(f"{name!r} is no name of a model. `potluck models` shows them.")
        self._transport.delete(f"/v1/models/{url_quote(name, safe='')}")

    def _fetched(self, name: str, file: ModelFile, target: BinaryIO) -> Iterator[int]:
        """How many bytes are here; at the end all of them, and right."""
        digest, size = hashlib.sha256(), 0
        with self._transport.download(path_of_name(MODELS, name, f"files/{file.name}")) as chunks:
            for chunk in chunks:
                target.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                yield size
        if digest.hexdigest() != file.sha256:
            message = f"What came is not the file {file.name} that the pool has. Try again."
            raise Unreachable(message, code="connection_broken")


def folder_name(name: str) -> str:
    """The model's name as a folder is called on any system."""
    return _IN_FOLDERS.sub("-", name).strip(".-") or "model"
