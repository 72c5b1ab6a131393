"""The coordinator's own count of tokens, by which everything is charged.

Each model's tokenizer is prepared once, off the event loop, from its tokenizer.json or its GGUF file's own
vocabulary, and kept as `<folder>/<sha256 of that file>.json`. Until then, and for models whose tokenizer
cannot be had, the count is the text's length in UTF-8: no tokenizer makes more tokens than that.

`count_text`, `count_chat` and `check_ids` only read and may be called from any thread. For texts above
4,096 characters the interpreter lock is released while they are counted: in a thread, they do not hold up the
event loop.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from coordinator.spelling import SILENT_MAX, Spelling, emulated, spelling_of
from potluck.catalogue import Catalogue, File, GgufError, ModelEntry
from potluck.home import write_atomic
from potluck.vocabulary import VocabularyError, tokenizer_of_gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GGUF_BYTES_MAX: Final = (
    1 << 30
)  # above, a file is not fetched for its vocabulary: the entry names a tokenizer
TOKENIZER_BYTES_MAX: Final = 64 << 20
CHUNK_CHARS: Final = 32 << 10  # bounds the memory of one call: about 150 bytes a token while it is counted
CHUNK_CHARS_MAX: Final = 128 << 10
INLINE_CHARS_MAX: Final = 4_096
# Between two letters, a space belongs to the right in every way of cutting text, and a line break stands
# alone; sentencepiece would begin the right part with a space of its own, unless it has one.
_SPACE_CUT: Final = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")
_SAFE_CUT: Final = re.compile(_SPACE_CUT.pattern + r"|(?<=[^\W\d_]\n)(?=[^\W\d_])")
_WORD: Final = re.compile(r"\S+")


class Message(Protocol):
    """A chat message as in work.proto."""

    role: str
    content: str
    name: str


class TokenizerUnavailable(Exception):  # noqa: N818 -- named for what happened
    """A model is counted by its bytes; the message says why."""


@dataclass(frozen=True, slots=True)
class Exact:
    """A model's tokenizer and its spelling."""

    tokenizer: "Tokenizer"
    spelling: Spelling | None
    cut: re.Pattern[str]  # where a long text may be cut, to be counted in parts

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "Exact":
        tokenizer.no_truncation()
        tokenizer.no_padding()
        spelling = spelling_of(tokenizer)
        sentencepiece = spelling is not None and spelling.leading_space
        return cls(tokenizer, spelling, _SPACE_CUT if sentencepiece else _SAFE_CUT)

    def count(self, text: str) -> int:
        """Exact; but a text that has nowhere to be cut in 128 Ki characters is a few tokens off."""
        return sum(self._count(part) for part in parts(text, self.cut))

    def _count(self, text: str) -> int:
        try:
            if len(text) <= INLINE_CHARS_MAX:
                return len(self.tokenizer.encode(text, add_special_tokens=False))
            # Only the batch call releases the interpreter lock; for short texts its own threads cost more.
            return len(self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])
        except TypeError:  # a lone surrogate: no tokenizer takes it, and no border should let it in
            sound = text.encode(errors="replace").decode()
            if sound == text:
                raise
            return self._count(sound)


@dataclass(slots=True)
class TokenCounter:
    """`catalogue` is a function because admins add models while the pool runs."""

    folder: Path
    catalogue: Callable[[], Catalogue]
    _ready: dict[str, Exact] = field(default_factory=dict)  # by sha256 of the file it comes from
    _preparing: dict[str, "asyncio.Task[Exact]"] = field(default_factory=dict)

    async def prepare(self, entry: ModelEntry, obtain: Callable[[File], Awaitable[Path]]) -> None:
        """Make the model's count exact. `obtain` fetches a file that is needed for it.

        Once for each file, however often it is asked for. Raises TokenizerUnavailable, and what `obtain`
        raises; the count then stays what it was.
        """
        source = vocabulary_file(entry)
        if _emulated(entry) or (source is not None and source.sha256 in self._ready):
            return
        if source is None:
            raise TokenizerUnavailable(
                f"{entry.name}: no file to take its vocabulary from. Name a tokenizer.json in its catalogue"
                " entry; until then it is counted by its bytes."
            )
        task = self._preparing.get(source.sha256)
        if task is None:
            task = asyncio.create_task(self._prepare(entry, source, obtain))
            self._preparing[source.sha256] = task
            task.add_done_callback(lambda _: self._preparing.pop(source.sha256, None))
        self._ready[source.sha256] = await asyncio.shield(task)

    async def _prepare(
        self, entry: ModelEntry, source: File, obtain: Callable[[File], Awaitable[Path]]
    ) -> Exact:
        kept = self.folder / f"{source.sha256}.json"
        try:
            if await asyncio.to_thread(kept.exists):
                try:
                    return await asyncio.to_thread(_load, kept)
                except VocabularyError:  # damaged: made anew
                    await asyncio.to_thread(kept.unlink)
            path = await obtain(source)
            return await asyncio.to_thread(_build, path, source, kept)
        except (VocabularyError, GgufError, OSError) as error:
            raise TokenizerUnavailable(f"{entry.name} is counted by its bytes: {error}") from error

    def exact(self, model: str) -> bool:
        """False while the count is an upper bound."""
        entry = self.catalogue().get(model)
        return entry is not None and (_emulated(entry) or self._of(entry) is not None)

    def count_text(self, model: str, text: str) -> int:
        """Tokens of the text alone, or its length in UTF-8 where there is no tokenizer."""
        entry = self.catalogue().get(model)
        if entry is not None and _emulated(entry):
            return sum(1 for _ in _WORD.finditer(text))
        exact = None if entry is None else self._of(entry)
        return len(text.encode(errors="replace")) if exact is None else exact.count(text)

    def count_chat(self, model: str, messages: Sequence[Message], more: Sequence[str] = ()) -> int:
        """Roles, names and texts, what else stands in the prompt (`more`: tools and their calls, a schema),
        and what the model's template adds to them.
        """
        entry = self.catalogue().get(model)
        texts = [text for m in messages for text in (m.role, m.name, m.content) if text]
        total = sum(self.count_text(model, text) for text in (*texts, *more))
        if entry is None:
            return total
        overhead = entry.template_overhead
        if not messages or messages[0].role != "system":
            total += overhead.default_system
        return total + overhead.per_request + overhead.per_message * len(messages)

    def check_ids(
        self, model: str, previous: Sequence[int], ids: Sequence[int], text: str, *, final: bool
    ) -> bool:
        """Do `ids`, coming after `previous`, decode to `text`? `final`: a stop string may be cut off it.

        Where nothing can decode them, at least there may not be more tokens than bytes.
        """
        entry = self.catalogue().get(model)
        if entry is not None and _emulated(entry):
            return emulated(ids, text, final=final)
        exact = None if entry is None else self._of(entry)
        if exact is not None and exact.spelling is not None:
            return exact.spelling.agrees(previous, ids, text, final=final)
        return final or len(ids) <= len(text.encode(errors="replace")) + SILENT_MAX

    def _of(self, entry: ModelEntry) -> Exact | None:
        source = vocabulary_file(entry)
        return None if source is None else self._ready.get(source.sha256)


def vocabulary_file(entry: ModelEntry) -> File | None:
    """What the tokenizer is made of: the entry's own, a tokenizer.json, or a GGUF of at most 1 GiB."""
    if entry.tokenizer is not None:
        return entry.tokenizer
    for variant in entry.variants:
        for file in variant.files:
            if file.name == "tokenizer.json" and file.size_bytes <= TOKENIZER_BYTES_MAX:
                return file
            if variant.format == "gguf" and file.size_bytes <= GGUF_BYTES_MAX:
                return file
    return None


def parts(text: str, cut: re.Pattern[str]) -> Iterator[str]:
    """The text in parts of about 32 Ki characters, cut where no tokenizer joins what is on both sides."""
    start = 0
    while len(text) - start > CHUNK_CHARS:
        found = cut.search(text, start + CHUNK_CHARS, start + CHUNK_CHARS_MAX)
        end = found.start() if found else min(start + CHUNK_CHARS_MAX, len(text))
        yield text[start:end]
        start = end
    yield text[start:]


def _emulated(entry: ModelEntry) -> bool:
    return entry.family == "emulator"


def _build(path: Path, source: File, kept: Path) -> Exact:
    if source.name.endswith(".gguf"):
        tokenizer = tokenizer_of_gguf(path)
        write_atomic(kept, tokenizer.to_str().encode(), durable=False)
        return Exact.of(tokenizer)
    return _load(path)


def _load(path: Path) -> Exact:
    """Raises VocabularyError if it is no tokenizer.json."""
    from tokenizers import Tokenizer

    if path.stat().st_size > TOKENIZER_BYTES_MAX:
        raise VocabularyError(f"{path.name} is longer than {TOKENIZER_BYTES_MAX} bytes")
    try:
        return Exact.of(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
        raise VocabularyError(f"{path.name} is no tokenizer.json that can be used: {error}") from error
