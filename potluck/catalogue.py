"""The catalogue: which models a pool knows, their files with digests, and what pricing needs of them.

Entries come from three sides: `catalogue.json` beside this module, an admin, and, at a worker, its
coordinator. All are untrusted JSON: types are strict, every text has a pattern, every number a limit. A
`path` source reads a local file, so only local settings may hold one: `Catalogue.from_wire` refuses it.
"""

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from potluck.gguf import GgufError, read_header
from potluck.linears import LINEARS_MAX, Linear
from potluck.shape import ModelShape, ShapeError, shape_of_config, shape_of_gguf

__all__ = [
    "Artifact", "Catalogue", "CatalogueError", "File", "GgufError", "HuggingFace", "LocalPath", "ModelEntry",
    "ModelShape", "ShapeError", "Source", "TemplateOverhead", "Variant", "Wheel", "gguf_metadata",
    "shape_of_config", "shape_of_gguf",
]  # fmt: skip

CATALOGUE_BYTES_MAX: Final = 4 << 20
ENTRIES_MAX: Final = 4_096
ALIASES_MAX: Final = 16
VARIANTS_MAX: Final = 16
FILES_MAX: Final = 256
FILE_BYTES_MAX: Final = 1 << 42
CONTEXT_TOKENS_MAX: Final = 1 << 24
OVERHEAD_TOKENS_MAX: Final = 4_096
CLOSE_NAMES_MAX: Final = 5
ERRORS_SHOWN_MAX: Final = 5
NAME_SHOWN_CHARS_MAX: Final = 96
DEFAULT_MODEL: Final = "smollm2-135m-instruct"

ModelName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,95}(:[a-z0-9._-]+)?$", max_length=160)
]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}$")]
# Segments that begin with a letter, digit or underscore: nothing absolute, no "..", no hidden file, no drive.
RelativePath = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$", max_length=512
    ),
]
Tokens = Annotated[int, Field(ge=0, le=OVERHEAD_TOKENS_MAX)]
Kind = Literal["chat", "completion", "embedding"]
EngineName = Literal["llamacpp", "torch", "openai", "emulator"]


class CatalogueError(ValueError):
    """The JSON is no catalogue; the message names the entry and the field."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class HuggingFace(_Model):
    """A file of a repository at one commit, so that it cannot change under its digest."""

    kind: Literal["huggingface"] = "huggingface"
    repo: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")
    ]
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    path: RelativePath


class Wheel(_Model):
    """A file inside a published wheel."""

    kind: Literal["wheel"] = "wheel"
    package: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$")]
    version: Annotated[str, StringConstraints(pattern=r"^[0-9][A-Za-z0-9.+!]{0,63}$")]
    member: RelativePath
    wheel_sha256: Sha256


class LocalPath(_Model):
    """A file of this machine; never taken from the wire."""

    kind: Literal["path"] = "path"
    path: Annotated[str, StringConstraints(min_length=1, max_length=4_096, pattern=r"^[^\x00]+$")]


class Artifact(_Model):
    """The coordinator's own store holds it under its digest."""

    kind: Literal["artifact"] = "artifact"


Source = Annotated[HuggingFace | Wheel | LocalPath | Artifact, Field(discriminator="kind")]


class File(_Model):
    name: FileName
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=1, le=FILE_BYTES_MAX)]
    source: Source


class Variant(_Model):
    """One form of the weights. `format` is none where the engine has no files (openai, emulator)."""

    format: Literal["gguf", "safetensors", "none"]
    engines: Annotated[tuple[EngineName, ...], Field(min_length=1, max_length=8)]
    files: Annotated[tuple[File, ...], Field(max_length=FILES_MAX)] = ()
    memory_bytes: Annotated[int, Field(ge=0, le=FILE_BYTES_MAX)]  # weights and context, as served

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.format == "none") != (not self.files):
            raise ValueError("a variant has files exactly if its format is not none")
        if len({file.name for file in self.files}) < len(self.files):
            raise ValueError("two files of a variant have one name")
        return self


class TemplateOverhead(_Model):
    """Tokens that the model's chat template adds to what the messages say.

    `per_request`: the start of the answer, and BOS where there is one. `per_message`: its marks, without role
    and text. `default_system`: the system message that the template adds to a conversation that begins
    without one.
    """

    per_request: Tokens = 0
    per_message: Tokens = 0
    default_system: Tokens = 0


class ModelEntry(_Model):
    name: ModelName
    aliases: Annotated[tuple[ModelName, ...], Field(max_length=ALIASES_MAX)] = ()
    family: Word
    licence: Word
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1, max_length=3)]
    context_tokens: Annotated[int, Field(ge=1, le=CONTEXT_TOKENS_MAX)]
    parameters: Annotated[int, Field(ge=1, le=1 << 50)]
    shape: ModelShape
    linears: Annotated[tuple[Linear, ...], Field(max_length=LINEARS_MAX)] = ()  # of each of its layers
    template_overhead: TemplateOverhead = TemplateOverhead()
    tokenizer: File | None = (
        None  # a tokenizer.json, where the weights are too large to fetch for their vocabulary
    )
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=VARIANTS_MAX)]

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        if len({linear.target for linear in self.linears}) < len(self.linears):
            raise ValueError("two linears have one name")
        return self

    @property
    def engines(self) -> tuple[str, ...]:
        """Every engine that can serve it, in the order of the variants."""
        return tuple(dict.fromkeys(engine for variant in self.variants for engine in variant.engines))

    @property
    def files(self) -> tuple[File, ...]:
        extra = () if self.tokenizer is None else (self.tokenizer,)
        return extra + tuple(file for variant in self.variants for file in variant.files)

    @property
    def reads_local_paths(self) -> bool:
        """Some file comes from a path of the machine that reads this: fine in local settings only."""
        return any(isinstance(file.source, LocalPath) for file in self.files)

    @classmethod
    def parse(cls, data: bytes | str, *, paths: bool, nameless: str = "the entry") -> "ModelEntry":
        """One entry from JSON. `paths`: may it read local files? Raises CatalogueError.

        `nameless`: what the message calls an entry that has no name.
        """
        try:
            entry = cls.model_validate_json(data)
        except ValidationError as error:
            raise CatalogueError(f"{_name_in(data) or nameless}: {_sentence(error)}") from error
        if entry.reads_local_paths and not paths:
            raise CatalogueError(
                f"{entry.name}: path sources stand in local settings only, for one's own files"
            )
        return entry


@dataclass(frozen=True)  # no slots: the index is cached
class Catalogue:
    """Entries by name and alias. Raises CatalogueError if a name stands twice."""

    entries: tuple[ModelEntry, ...]

    def __post_init__(self) -> None:
        if len(self.entries) > ENTRIES_MAX:
            raise CatalogueError(f"{len(self.entries)} models; {ENTRIES_MAX} are allowed")
        names = [name for entry in self.entries for name in (entry.name, *entry.aliases)]
        if len(self._index) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise CatalogueError(f"the name {twice} stands twice")

    @cached_property
    def _index(self) -> dict[str, ModelEntry]:
        return {name: entry for entry in self.entries for name in (entry.name, *entry.aliases)}

    def get(self, name: str) -> ModelEntry | None:
        """The entry of that name or alias. Case and surrounding space do not matter."""
        return self._index.get(name) or self._index.get(name.strip().lower())

    def closest(self, name: str) -> list[str]:
        """Names of models that are spelled like it, best first; at most five."""
        close = difflib.get_close_matches(name.lower()[:160], self._index, n=CLOSE_NAMES_MAX, cutoff=0.5)
        return list(dict.fromkeys(self._index[match].name for match in close))

    def with_entries(self, entries: Iterable[ModelEntry]) -> "Catalogue":
        """These entries added; one of the same name is replaced."""
        merged = {entry.name: entry for entry in (*self.entries, *entries)}
        return Catalogue(tuple(merged.values()))

    @classmethod
    def builtin(cls, *, emulator: bool = False) -> "Catalogue":
        """What comes with Potluck. `emulator`: and the model that only pretends, for tests and benchmarks."""
        data = resources.files("potluck").joinpath("catalogue.json").read_bytes()
        entries = cls.parse(data).entries
        return cls(tuple(e for e in entries if emulator or e.family != "emulator"))

    @classmethod
    def parse(cls, data: bytes) -> "Catalogue":
        """A whole catalogue from local JSON. Raises CatalogueError at the first thing that is wrong."""
        return cls(tuple(_entry(item, number, paths=True) for number, item in enumerate(_items(data), 1)))

    @classmethod
    def from_wire(cls, data: bytes) -> tuple["Catalogue", list[str]]:
        """What a coordinator sent, and a sentence about each entry that was left out.

        An entry that this version does not understand, or one that would read a local path, does not take the
        others with it. Raises CatalogueError if it is no catalogue at all.
        """
        entries: list[ModelEntry] = []
        refused: list[str] = []
        names: set[str] = set()
        for number, item in enumerate(_items(data), 1):
            try:
                entry = _entry(item, number, paths=False)
            except CatalogueError as error:
                refused.append(str(error))
                continue
            own = {entry.name, *entry.aliases}
            if names & own:
                refused.append(f"{entry.name}: a name of it stands twice")
                continue
            names |= own
            entries.append(entry)
        return cls(tuple(entries)), refused

    def to_wire(self) -> bytes:
        """For workers: JSON in which files at the coordinator's own paths are artifacts of its store."""
        return (
            b'{"models": ['
            + b",\n".join(_outward(e).model_dump_json().encode() for e in self.entries)
            + b"]}"
        )


def gguf_metadata(path: Path) -> dict[str, Any]:
    """The file's own metadata by key, arrays as lists. Raises GgufError, OSError."""
    return read_header(path).metadata


def _items(data: bytes) -> list[Any]:
    if len(data) > CATALOGUE_BYTES_MAX:
        raise CatalogueError(f"the catalogue has {len(data)} bytes; {CATALOGUE_BYTES_MAX} are allowed")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CatalogueError(f"the catalogue is no JSON: {error}") from error
    items = document.get("models") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise CatalogueError('a catalogue is an object with a list "models"')
    if len(items) > ENTRIES_MAX:
        raise CatalogueError(f"{len(items)} models; {ENTRIES_MAX} are allowed")
    return items


def _entry(item: Any, number: int, *, paths: bool) -> ModelEntry:
    return ModelEntry.parse(json.dumps(item), paths=paths, nameless=f"entry {number}")


def _outward(entry: ModelEntry) -> ModelEntry:
    if not entry.reads_local_paths:
        return entry
    variants = tuple(
        variant.model_copy(update={"files": tuple(_artifact(file) for file in variant.files)})
        for variant in entry.variants
    )
    tokenizer = entry.tokenizer and _artifact(entry.tokenizer)
    return entry.model_copy(update={"variants": variants, "tokenizer": tokenizer})


def _artifact(file: File) -> File:
    return file.model_copy(update={"source": Artifact()}) if isinstance(file.source, LocalPath) else file


def _name_in(data: bytes | str) -> str:
    """What an entry that is refused calls itself; empty if that cannot be shown."""
    try:
        item = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    name = item.get("name") if isinstance(item, dict) else None
    return name[:NAME_SHOWN_CHARS_MAX] if isinstance(name, str) and name.isprintable() else ""


def _sentence(error: ValidationError) -> str:
    """Where and why, without the offending value: it may be huge."""
    problems = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(part) for part in item["loc"])
        problems.append(f"{field}: {item['msg']}" if field else item["msg"])
    more = len(problems) - ERRORS_SHOWN_MAX
    return "; ".join(problems[:ERRORS_SHOWN_MAX]) + (f"; and {more} more" if more > 0 else "")
