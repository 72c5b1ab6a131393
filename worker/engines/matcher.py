"""Holding a sampler to a grammar: which tokens may come next, by llguidance over the model's own tokens."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from worker.engines.engine import JobError
from worker.engines.structure import limits


class Constraint:
    """One choice on its way through a grammar; it belongs to one thread at a time."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def replay(self, ids: Sequence[int]) -> None:
        """What an earlier attempt delivered. Raises JobError if it does not fit: nobody can go on then."""
        if self._matcher.try_consume_tokens(list(ids)) != len(ids):
            raise JobError(
                "structure_broken",
                "what was delivered so far does not hold to the structure that was asked for",
            )

    def allowed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits, -inf for every token that may not come. Raises JobError where the grammar gives up."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: logits.size].astype(bool)
        if self._matcher.is_error() or not mask.any():
            raise JobError(
                "structure_too_complex", "the structure that was asked for takes too much to follow"
            )
        held = np.full_like(logits, -np.inf)
        held[: mask.size][mask] = logits[: mask.size][mask]
        return held

    def push(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)

    @property
    def complete(self) -> bool:
        """Nothing may follow."""
        return bool(self._matcher.is_stopped())


class Grammars:
    """The tokens of one model, as matchers need them."""

    def __init__(self, tokens: LLTokenizer) -> None:
        self._tokens = tokens

    @classmethod
    def of(cls, tokenizer: Any, vocabulary_size: int, end_ids: Iterable[int]) -> "Grammars | None":
        """`tokenizer`: of the `tokenizers` package; None for an unknown kind. Takes a second."""
        try:
            slices = LLTokenizer.json_slices()
            return cls(LLTokenizer(tokenizer.to_str(), vocabulary_size, sorted(end_ids), slices))
        except ValueError:
            return None

    def constraint(self, grammar: str, said: Sequence[int] = ()) -> Constraint:
        """From the grammar's beginning to behind `said`. Raises JobError."""
        matcher = LLMatcher(self._tokens, grammar, log_level=0, limits=limits())
        if matcher.is_error():
            raise JobError("unsupported_schema", "the schemas together are too much for one grammar")
        constraint = Constraint(matcher)
        constraint.replay(said)
        return constraint
