"""The pool's models at the start: those that come with Potluck, the operator's own, those that admins added.

The operator's own stand in `catalogue.json` in the coordinator's folder. Their files with `path` sources are
copied into the artifact store, from which workers fetch them: a copy, since the original may be written to.
What the store holds already is not read again, so the original may also go.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

import structlog

from coordinator.artifacts import ArtifactError, ArtifactMismatch, ArtifactStore, NoSuchArtifact
from coordinator.settings import Settings
from coordinator.store import Store
from potluck.catalogue import (
    CATALOGUE_BYTES_MAX,
    Artifact,
    Catalogue,
    CatalogueError,
    File,
    LocalPath,
    ModelEntry,
)

CATALOGUE_FILE: Final = "catalogue.json"
ARTIFACTS_FOLDER: Final = "artifacts"
CHUNK_BYTES: Final = 1 << 20

log = structlog.get_logger(__name__)


class ModelsError(Exception):
    """The operator's catalogue cannot be used; the message names its file, the entry and the field."""


@dataclass(frozen=True, slots=True)
class Models:
    """What the pool offers, and where the files of its own lie."""

    catalogue: Catalogue
    artifacts: ArtifactStore

    @classmethod
    async def open(cls, store: Store, settings: Settings) -> Self:
        """For the start, before anybody is let in. Raises ModelsError, StoreError."""
        artifacts = ArtifactStore(settings.folder / ARTIFACTS_FOLDER)
        await asyncio.to_thread(artifacts.sweep)
        path = settings.folder / CATALOGUE_FILE
        catalogue = Catalogue.builtin(emulator=settings.emulator)
        try:
            own = await asyncio.to_thread(_read, path)
            catalogue = catalogue.with_entries(own)
            for entry in own:
                for field, file in _files(entry):
                    await _keep(artifacts, path.parent, f"{entry.name}: {field}", file)
        except (CatalogueError, OSError) as error:
            raise ModelsError(f"{path}: {_reason(error)}. Correct that, then start again.") from error
        return cls(await _with_added(catalogue, store), artifacts)


def _read(path: Path) -> tuple[ModelEntry, ...]:
    """None if there is no such file. Raises CatalogueError, OSError."""
    try:
        with path.open("rb") as file:
            data = file.read(CATALOGUE_BYTES_MAX + 1)
    except FileNotFoundError:
        return ()
    return Catalogue.parse(data).entries


def _files(entry: ModelEntry) -> Iterator[tuple[str, File]]:
    """Each file with the field in which it stands."""
    if entry.tokenizer is not None:
        yield "tokenizer", entry.tokenizer
    for number, variant in enumerate(entry.variants):
        for place, file in enumerate(variant.files):
            yield f"variants.{number}.files.{place}", file


async def _keep(artifacts: ArtifactStore, folder: Path, field: str, file: File) -> None:
    """See to it that the store holds the file, if that is where workers look for it.

    `folder`: where relative paths begin. Raises CatalogueError, OSError.
    """
    if not isinstance(file.source, LocalPath | Artifact):
        return
    stored = await asyncio.to_thread(_size, artifacts, file.sha256)
    if stored is not None:
        if stored != file.size_bytes:
            raise CatalogueError(f"{field}.size_bytes: the file of that sha256 has {stored} bytes")
        return
    if isinstance(file.source, Artifact):
        raise CatalogueError(
            f"{field}.source: the artifact store does not have {file.sha256}; give the file a path source"
        )
    with await asyncio.to_thread(_opened, folder, field, file) as original:
        log.info("copying a model's file", action="model_file_kept", file=file.name, bytes=file.size_bytes)
        try:
            await artifacts.put(_chunks(original), bytes_max=file.size_bytes, sha256=file.sha256)
        except ArtifactMismatch as error:
            raise CatalogueError(f"{field}.sha256: {original.name}: {error}") from error
        except ArtifactError as error:
            raise CatalogueError(f"{field}: {str(error).rstrip('.')}") from error


def _opened(folder: Path, field: str, file: File) -> BinaryIO:
    """The original, if it has the size that the catalogue says. Raises CatalogueError."""
    assert isinstance(file.source, LocalPath)
    try:
        path = folder / Path(file.source.path).expanduser()
        found = path.stat().st_size
        if found == file.size_bytes:
            return path.open("rb")
    except (OSError, RuntimeError) as error:  # RuntimeError: the "~" of nobody
        raise CatalogueError(
            f"{field}.source.path: {file.source.path} cannot be read: {_reason(error)}"
        ) from error
    raise CatalogueError(f"{field}.size_bytes: {path} has {found} bytes, not {file.size_bytes}")


def _size(artifacts: ArtifactStore, sha256: str) -> int | None:
    try:
        return artifacts.size(sha256)
    except NoSuchArtifact:
        return None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield data


async def _with_added(catalogue: Catalogue, store: Store) -> Catalogue:
    """An entry of an admin that cannot be used (any more) is left out: it must not bar the start."""
    for row in await store.models():
        try:
            catalogue = catalogue.with_entries([ModelEntry.parse(row.entry, paths=False)])
        except CatalogueError as error:
            log.warning(
                "an admin's model is left out", action="model_left_out", model=row.name, why=str(error)
            )
    return catalogue
