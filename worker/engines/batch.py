"""The running batch of the torch engine: sequences join and leave it at every step.

One step is at most a piece of one prompt, then one token for every sequence that decodes. A piece is about as
long as is read in CHUNK_S, by the time that the last ones took: a long prompt, whose pieces cost the more the
more of it is read, then holds up the others by no more than that at a time.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from worker.engines.footprint import Footprint
from worker.engines.lora import Adapter, Lora
from worker.engines.masks import Masks
from worker.engines.pieces import Pieces
from worker.engines.rows import Rows
from worker.engines.sampling import Sampler

CHUNK_S = 0.3
CHUNK_TOKENS_MIN = 16
CHUNK_TOKENS_MAX = 512
EMBEDDINGS_MAX = 32  # short inputs that are read together


@dataclass(slots=True, eq=False)
class Decoding:
    """One choice on its way: `ids` are prompt, delivered and generated tokens; `filled` of them are in its
    row.

    `heard(sequence, logits)` is called with the logits [vocabulary] after the last id: it appends the next
    id to `ids`, or returns False at the end.
    """

    owner: Any
    ids: list[int]
    pieces: Pieces
    sampler: Sampler
    prompt_tokens: int  # the part of `ids` that the choices of one attempt share
    heard: Callable[["Decoding", Any], bool]
    row: int = -1
    adapter: Adapter | None = None
    reach: int = 0  # how many tokens its row may hold at last, once it has one

    @property
    def tokens_max(self) -> int:
        return len(self.ids) + self.pieces.tokens_max - self.pieces.tokens


@dataclass(slots=True, eq=False)
class Embedding:
    """One input to be pooled; `total` is the sum of the last hidden states so far."""

    owner: Any
    ids: list[int]
    heard: Callable[["Embedding", Any], None]
    row: int = -1
    total: Any = None
    prompt_tokens: int = 0
    adapter: Adapter | None = None
    reach: int = 0

    @property
    def tokens_max(self) -> int:
        return len(self.ids)


Member = Decoding | Embedding


@dataclass(slots=True)
class Batch:
    """Everything is called from one thread. Rows 0..len(decoding) decode, those after them belong to
    `filling`.
    """

    model: Any
    rows: Rows
    rows_max: int
    chunk_tokens: int = CHUNK_TOKENS_MIN
    clock: Callable[[], float] = time.monotonic
    footprint: Footprint = field(default_factory=Footprint)
    waiting: list[Member] = field(default_factory=list)
    filling: list[Member] = field(default_factory=list)
    decoding: list[Decoding] = field(default_factory=list)
    lora: Lora = field(init=False)
    _masks: Masks = field(init=False)
    _embedding_turn: bool = False  # prompts and short embeddings are read by turns

    def __post_init__(self) -> None:
        self.lora, self._masks = Lora(self.model), Masks.of(self.model)

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.filling or self.decoding)

    def add(self, members: Iterable[Member]) -> None:
        self.waiting.extend(members)

    def drop(self, owner: Any) -> None:
        """Everything of one attempt leaves now."""
        self.waiting = [member for member in self.waiting if member.owner is not owner]
        with torch.inference_mode():
            for member in [*self.filling, *self.decoding]:
                if member.owner is owner:
                    self._leave(member)

    def clear(self) -> list[Any]:
        """Begin anew with nothing, whatever state a failure left; returns the owners of all that was here."""
        owners = {id(m.owner): m.owner for m in [*self.waiting, *self.filling, *self.decoding]}
        self.rows = Rows(self.rows.layers, self.rows.tokens_max)  # what is granted is said with the next row
        self.waiting, self.filling, self.decoding = [], [], []
        return list(owners.values())

    def step(self) -> None:
        """One piece of a prompt, then one token for everybody who decodes."""
        self.read()
        self.decode()

    def read(self) -> None:
        """Admit who waits, then read one piece of a prompt or some short inputs."""
        with torch.inference_mode():
            self._admit()
            self._embedding_turn = not self._embedding_turn
            first = self._embedding_turn or not self.filling
            if not (first and self._embed_together()) and self.filling:
                self._read()
            self.lora.use(())  # nobody is held in memory between passes

    def decode(self) -> None:
        with torch.inference_mode():
            if self.decoding:
                self._decode()
                self.lora.use(())

    # -- joining and leaving -------------------------------------------------------------------------------

    def _admit(self) -> None:
        """In the order of arrival; choices of one prompt wait for the first to have read it."""
        still: list[Member] = []
        full = False
        for member in self.waiting:
            short = isinstance(member, Embedding) and len(member.ids) <= self.chunk_tokens
            leader = None if short else self._leader(member)
            shared = member.prompt_tokens - 1
            unread = leader is not None and self.rows.lengths[leader.row] < shared
            if not short and not unread:  # where there is no room for one, nobody overtakes it
                full = full or len(self.rows.lengths) >= self.rows_max or not self._has_room(member)
            if short or unread or full:
                still.append(member)
                continue
            member.row = self.rows.add()
            self.filling.append(member)
            if leader is not None:
                self.rows.copy(leader.row, member.row, shared)
        self.waiting = still

    def _has_room(self, member: Member) -> bool:
        """Whether memory is enough for one more row, however long it and the others may become."""
        reach = min(self.rows.tokens_max, member.tokens_max)
        rows, tokens = self.rows.capacity
        rows = max(rows, len(self.rows.lengths) + 1)
        tokens = max(tokens, reach, *(other.reach for other in [*self.decoding, *self.filling]))
        if not self.footprint.fits(rows, tokens):
            return False
        member.reach = reach
        if self.footprint.cap_bytes:
            self.rows.grant(rows, tokens)
        return True

    def _leader(self, member: Member) -> Decoding | None:
        if isinstance(member, Embedding):
            return None
        candidates = (other for other in [*self.decoding, *self.filling] if isinstance(other, Decoding))
        return next((other for other in candidates if other.owner is member.owner), None)

    def _leave(self, member: Member) -> None:
        """Close the gap: the last decoding row moves into it, the last of all into that one's place."""
        gap = member.row
        if isinstance(member, Decoding) and member in self.decoding:
            last = self.decoding[-1]
            self._exchange(member, last)
            self.decoding.remove(member)
            gap = member.row
        else:
            self.filling.remove(member)
        others = [*self.decoding, *self.filling]
        last_row = len(self.rows.lengths) - 1
        if gap != last_row:
            mover = next(other for other in others if other.row == last_row)
            self._exchange(member, mover)
        self.rows.pop()
        member.row = -1

    def _exchange(self, one: Member, other: Member) -> None:
        self.rows.swap(one.row, other.row)
        one.row, other.row = other.row, one.row
        self.decoding.sort(key=lambda member: member.row)

    # -- computing -----------------------------------------------------------------------------------------

    def _together(self) -> list[Member]:
        """Who is read next: the first prompt, and short ones beside it as far as the padding allows.

        They get the rows after those that decode.
        """
        taken: list[Member] = []
        longest = 0
        for member in self.filling:
            if taken and type(member) is not type(taken[0]):
                break
            longest = max(longest, min(self.chunk_tokens, len(member.ids) - self.rows.lengths[member.row]))
            if taken and longest * (len(taken) + 1) > self.chunk_tokens:
                break
            taken.append(member)
        for row, member in enumerate(taken, start=len(self.decoding)):
            if member.row != row:
                self._exchange(member, next(other for other in self.filling if other.row == row))
        return taken

    def _read(self) -> None:
        """The next piece of one prompt or of several; who is at its end begins to decode."""
        taken = self._together()
        begins = [self.rows.lengths[member.row] for member in taken]
        pieces = [
            member.ids[begin : begin + self.chunk_tokens] for member, begin in zip(taken, begins, strict=True)
        ]
        width = max(map(len, pieces))
        end = max(begin + len(piece) for begin, piece in zip(begins, pieces, strict=True))
        device = self.model.device
        # Shorter pieces repeat their first token in front: same place, same values. So all end in one column.
        ids = [piece[:1] * (width - len(piece)) + piece for piece in pieces]
        places = [
            [begin] * (width - len(piece)) + [*range(begin, begin + len(piece))]
            for begin, piece in zip(begins, pieces, strict=True)
        ]
        positions = torch.tensor(places, device=device)
        self.rows.begin(taken[0].row, positions, end)
        self.lora.use([member.adapter for member in taken])
        compute = self._logits if isinstance(taken[0], Decoding) else self._hidden
        begun = self.clock()
        results = compute(torch.tensor(ids, device=device), positions, self._masks.make(positions, end))
        self._adapt(width * len(taken), self.clock() - begun)
        # To the end of the line: a short prompt does not wait for a long one.
        self.filling = [*(member for member in self.filling if member not in taken), *taken]
        for member, begin, piece, result in zip(taken, begins, pieces, results, strict=True):
            self.rows.lengths[member.row] = begin + len(piece)
            self._have_read(member, len(piece), result)

    def _adapt(self, tokens: int, seconds: float) -> None:
        """The next piece is one of CHUNK_S, but no more than twice as long as this one.

        A short piece is as slow as a longer one, so it only tells something if it took too long.
        """
        if tokens >= self.chunk_tokens or seconds > CHUNK_S:
            right = int(tokens * CHUNK_S / max(seconds, 1e-6))
            self.chunk_tokens = max(CHUNK_TOKENS_MIN, min(CHUNK_TOKENS_MAX, 2 * self.chunk_tokens, right))

    def _have_read(self, member: Member, tokens: int, result: Any) -> None:
        """`result`: logits for a Decoding, hidden states for an Embedding."""
        whole = self.rows.lengths[member.row] == len(member.ids)
        if isinstance(member, Embedding):
            total = result[-tokens:].sum(0, dtype=torch.float32)
            member.total = total if member.total is None else member.total + total
            if whole:
                self._leave(member)
                member.heard(member, (member.total / len(member.ids)).cpu().numpy())
        elif whole:
            self._begin_decoding(member, result)

    def _begin_decoding(self, member: Decoding, logits: Any) -> None:
        target = len(self.decoding)  # the first row after those that decode
        if member.row != target:
            self._exchange(member, next(other for other in self.filling if other.row == target))
        self.filling.remove(member)
        self.decoding.append(member)
        if not member.heard(member, logits):
            self._leave(member)

    def _decode(self) -> None:
        """One token for every row that decodes."""
        members = list(self.decoding)
        device = self.model.device
        lengths = self.rows.lengths[: len(members)]
        end = max(lengths) + 1
        positions = torch.tensor(lengths, device=device)[:, None]
        self.rows.begin(0, positions, end)
        self.lora.use([member.adapter for member in members])
        ids = torch.tensor([[member.ids[-1]] for member in members], device=device)
        logits = self._logits(ids, positions, self._masks.make(positions, end))
        for row in range(len(members)):
            self.rows.lengths[row] += 1
        ended = [member for row, member in enumerate(members) if not member.heard(member, logits[row])]
        for member in ended:
            self._leave(member)

    def _embed_together(self) -> bool:
        """Short inputs side by side. Causal attention never looks at what stands behind: padding needs no
        mask.
        """
        short = [member for member in self.waiting if isinstance(member, Embedding)]
        taken: list[Embedding] = []
        for member in short[:EMBEDDINGS_MAX]:
            longest = max(len(other.ids) for other in [*taken, member])
            if taken and longest * (len(taken) + 1) > self.chunk_tokens:
                break
            taken.append(member)
        if not taken:
            return False
        gone = set(map(id, taken))
        self.waiting = [member for member in self.waiting if id(member) not in gone]
        longest = max(len(member.ids) for member in taken)
        padded = [member.ids + [0] * (longest - len(member.ids)) for member in taken]
        ids = torch.tensor(padded, device=self.model.device)
        self.lora.use([member.adapter for member in taken])
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        for row, member in enumerate(taken):
            vector = hidden[row, : len(member.ids)].mean(0, dtype=torch.float32)
            member.heard(member, vector.cpu().numpy())
        return True

    def _hidden(self, ids: Any, positions: Any, mask: Any) -> Any:
        """Last hidden states [rows, tokens, width]."""
        answer = self.model.base_model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.rows,
            use_cache=True,
        )
        return answer.last_hidden_state

    def _logits(self, ids: Any, positions: Any, mask: Any) -> Any:
        """After the last token of each row: numpy, fp32, [rows, vocabulary]."""
        answer = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.rows,
            use_cache=True,
            logits_to_keep=1,
        )
        return answer.logits[:, -1].float().cpu().numpy()


def unit(vector: Any) -> Sequence[float]:
    """L2-normalised."""
    norm = float(np.linalg.norm(vector)) or 1.0
    return [float(value) for value in vector / norm]
