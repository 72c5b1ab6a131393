"""The pool's sampler: which token follows from logits, seed, choice and position, and from nothing else.

    argmax over the kept ids of  logits / T + g,   g = -ln(-ln(u)),   u = (floor(hash64 / 2**11) + 1/2) /
    2**53

in fp64, with hash64 of noise.py. Kept are, in this order: the top_k highest of logits / T, of these the
fewest highest whose probabilities (softmax over the top_k) add up to at least top_p. T = 0 is argmax of the
logits. Ties go to the lowest id, everywhere. Adding Gumbel noise and taking the maximum draws from softmax
(Gumbel 1954; Maddison, Tarlow, Minka: A* sampling, arXiv 1411.0030).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potluck.v1 import work_pb2
from worker.engines import noise

NUCLEUS_FIRST = 256  # how many of the highest are sorted at first, in the hope that they suffice
TOP_LOGPROBS_MAX = 20
ROUNDING = 1e-6  # far above that of fp64 sums of this size, far below what matters for speed

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


def hashes(key: int, ids: Ids) -> NDArray[np.uint64]:
    """hash64 for many ids at once; `key` is noise.stream(seed, choice, position)."""
    value = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(noise.GOLDEN) + np.uint64(key)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(noise.MULTIPLIER_1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(noise.MULTIPLIER_2)
    return value ^ (value >> np.uint64(31))


def gumbel(hashed: NDArray[np.uint64]) -> Floats:
    uniform = ((hashed >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52  # exact, never 0 or 1
    return np.asarray(-np.log(-np.log(uniform)), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Sampler:
    """One choice's sampler; `pick` is a pure function of logits and position."""

    seed: int
    choice: int
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off

    @classmethod
    def of(cls, sampling: work_pb2.Sampling, choice: int) -> "Sampler":
        return cls(sampling.seed, choice, sampling.temperature, sampling.top_k, sampling.top_p)

    def pick(self, logits: NDArray[np.float32], position: int) -> int:
        """The token at output index `position`. `logits` has one finite value (or -inf) for each id."""
        if self.temperature <= 0:
            return int(np.argmax(logits))
        scaled = logits.astype(np.float64) / self.temperature
        key = noise.stream(self.seed, self.choice, position)
        kept = _kept(scaled, self.top_k, self.top_p)
        if kept is None:
            return _winner(scaled, key)
        return int(kept[np.argmax(scaled[kept] + gumbel(hashes(key, kept)))])


def _winner(scaled: Floats, key: int) -> int:
    """The argmax of scaled + g over all ids, with logarithms for the few that can win.

    No g exceeds that of the largest hash, so ids further below a known sum than that are out.
    """
    hashed = hashes(key, np.arange(scaled.size))
    best = int(np.argmax(scaled))
    bound = scaled[best] + gumbel(hashed[best : best + 1])[0]
    possible = np.flatnonzero(scaled >= bound - gumbel(hashed.max(keepdims=True))[0] - ROUNDING)
    return int(possible[np.argmax(scaled[possible] + gumbel(hashed[possible]))])


def _kept(scaled: Floats, top_k: int, top_p: float) -> Ids | None:
    """Ids that survive top_k, then top_p, in ascending order; None for all."""
    size = scaled.size
    limit = top_k if 0 < top_k < size else size
    if top_p >= 1.0:
        return None if limit == size else np.sort(_highest(scaled, limit))
    peak = scaled.max()
    within: Ids | None = None if limit == size else _highest(scaled, limit)
    total = float(np.exp((scaled if within is None else scaled[within]) - peak).sum())
    count = min(NUCLEUS_FIRST, limit)
    while True:
        order = _highest(scaled, count)
        sums = np.cumsum(np.exp(scaled[order] - peak))
        if sums[-1] >= top_p * total or count == limit:
            return np.sort(order[: int(np.searchsorted(sums, top_p * total)) + 1])
        count = min(count * 8, limit)


def _highest(values: Floats, count: int) -> Ids:
    """Ids of the `count` highest, best first, ties in the order of the ids."""
    if count < values.size:
        edge = np.partition(values, values.size - count)[values.size - count]
        above = np.flatnonzero(values > edge)
        equal = np.flatnonzero(values == edge)[: count - above.size]
        ids = np.concatenate((above, equal))
        ids.sort()
    else:
        ids = np.arange(values.size)
    return ids[np.argsort(-values[ids], kind="stable")]


def logprobs(logits: NDArray[np.float32], token_id: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Of the raw logits (temperature 1, nothing filtered), ln softmax: the token's, and the `top` highest."""
    values = logits.astype(np.float64)
    peak = values.max()
    values -= peak + np.log(np.exp(values - peak).sum())
    highest = _highest(values, max(1, min(top, TOP_LOGPROBS_MAX)))[:top]
    return float(values[token_id]), [(int(index), float(values[index])) for index in highest]
