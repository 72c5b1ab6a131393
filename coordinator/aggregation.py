"""What the shares of a round changed, put together so that a few wrong ones cannot spoil it. For threads.

A delta is what the adapter was less what a worker made of it, by tensor. All that is decided follows from the
deltas' inner products: they are gone through twice, tensor by tensor, and never lie side by side as a whole.
In this order: whoever is longer than the median is shortened to it; of copies one counts; of fewer than four
the mean; of more, centred clipping (Karimireddy, He and Jaggi 2021, arXiv 2012.10333) from the geometric
median (Pillutla, Kakade and Harchaoui 2019, arXiv 1912.13445).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]

UNCHANGED: Final = "nothing was changed"
MOVED_MAX: Final = 1.0  # no weight of an adapter moves so far in one round
COPY: Final = 0.95  # cosine of two shares that were trained on different examples
FEW: Final = 4  # deltas, below which there is no majority to go by
CLIPPINGS: Final = 10
STEPS_MAX: Final = 100  # towards the geometric median
GROWTH_MAX: Final = 3.0  # times the median of the rounds before
HEAVY: Final = 2.0  # times the median weight
LONG: Final = 30  # rounds, from which on momentum pays
FEW_ROUNDS: Final = 1.3  # learning rate of the outer step before that


@dataclass(frozen=True, slots=True)
class Mean:
    """`rejected`: parts that did not count. `norms`: lengths of those that did, as they came."""

    delta: dict[str, Array]
    rejected: tuple[int, ...]
    norms: dict[int, float]


def gate(delta: Tensors, like: Tensors) -> str:
    """Empty, or why it can be no update of an adapter like this one."""
    if delta.keys() != like.keys():
        strange = min(delta.keys() ^ like.keys())
        return f"it has other tensors than the adapter: {strange[:200]}"
    moved = 0.0
    for name, wanted in like.items():
        array = delta[name]
        if array.shape != wanted.shape:
            return f"{name} is {list(array.shape)}, and {list(wanted.shape)} is needed"
        if not np.isfinite(array).all():
            return f"{name} is not finite"
        moved = max(moved, float(np.abs(array).max(initial=0.0)))
        if moved > MOVED_MAX:
            return f"{name} moved by {moved:.3g}; {MOVED_MAX:g} is the most"
    return "" if moved else UNCHANGED


def aggregate(
    deltas: Mapping[int, Tensors], weights: Mapping[int, float], previous_norms: Sequence[float] = ()
) -> Mean:
    """One update out of those that passed the gate, by part. `weights`: tokens that each was trained on.

    `previous_norms`: of updates of earlier rounds; in each round alone a majority could make itself long.
    """
    parts = sorted(deltas)
    if not parts:
        return Mean({}, (), {})
    products = _products([deltas[part] for part in parts])
    norms = np.sqrt(np.diag(products))
    kept = [index for index in _originals(products, norms) if norms[index] > 0]
    if not kept:
        return Mean({}, tuple(parts), {})
    scale = _shortened(norms[kept], previous_norms)
    inner = products[np.ix_(kept, kept)] * np.outer(scale, scale)
    by_weight = _capped(np.array([weights[parts[index]] for index in kept], np.float64))
    shares = by_weight if len(kept) < FEW else _clipped(inner, by_weight)
    chosen = {parts[index]: float(share * s) for index, share, s in zip(kept, shares, scale, strict=True)}
    return Mean(
        delta=_combined(deltas, chosen),
        rejected=tuple(part for part in parts if part not in chosen),
        norms={parts[index]: float(norms[index]) for index in kept},
    )


def plain(deltas: Mapping[int, Tensors], weights: Mapping[int, float]) -> dict[str, Array]:
    """Their mean by weight and nothing else, which one single wrong update can turn anywhere."""
    whole = sum(weights[part] for part in deltas)
    return _combined(deltas, {part: weights[part] / whole for part in sorted(deltas)})


def outer_step(rounds: int, updates: int) -> tuple[float, float]:
    """Learning rate and momentum of `outer`, for a round of so many updates that counted.

    A mean of several is shorter than each of them, since what is chance in them cancels out; in few rounds no
    momentum makes up for it. How much longer is measured (`benchmarks/rounds.py --outer`).
    """
    if rounds >= LONG:
        return 0.7, 0.9
    return (FEW_ROUNDS, 0.0) if updates > 1 else (1.0, 0.0)


def outer(
    theta: Tensors, delta: Tensors, momentum: Tensors | None, lr: float, mu: float
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The adapter and the momentum after the round, in Nesterov's form; the momentum is empty without any."""
    moved: dict[str, Array] = {}
    kept: dict[str, Array] = {}
    for name, array in theta.items():
        step: Array = np.asarray(delta[name], np.float32)
        if mu:
            kept[name] = step if not momentum else np.float32(mu) * momentum[name] + step
            step = step + np.float32(mu) * kept[name]
        moved[name] = np.asarray(array, np.float32) - np.float32(lr) * step
    return moved, kept


def _products(deltas: Sequence[Tensors]) -> Array:
    """Inner products of all pairs, added up in float64."""
    products = np.zeros((len(deltas), len(deltas)))
    for name in deltas[0]:
        rows = [np.asarray(delta[name], np.float32).reshape(-1) for delta in deltas]
        for i, row in enumerate(rows):
            for j in range(i, len(rows)):
                products[i, j] += float(np.dot(row, rows[j]))
    whole: Array = products + np.triu(products, 1).T
    return whole


def _originals(products: Array, norms: Array) -> list[int]:
    """All but copies: shares have no example in common, so nobody honest makes the same of them."""
    kept: list[int] = []
    for i in range(len(norms)):
        lengths = norms[kept] * norms[i]
        if not (products[i, kept] > COPY * lengths).any() or not norms[i]:
            kept.append(i)
    return kept


def _shortened(norms: Array, previous: Sequence[float]) -> Array:
    """By how much each is scaled to the median's length at most; of two, to the shorter one's."""
    most = float(np.sort(norms)[(len(norms) - 1) // 2])
    if previous:
        most = min(most, GROWTH_MAX * float(np.median(previous)))
    return np.minimum(1.0, most / norms)


def _capped(weights: Array) -> Array:
    """Parts of one; nobody counts for much more than the others."""
    if not (weights > 0).all():
        return np.full(len(weights), 1.0 / len(weights))
    held: Array = np.minimum(weights, HEAVY * np.median(weights))
    held /= held.sum()
    return held


def _clipped(inner: Array, weights: Array) -> Array:
    """Centred clipping; everything is a sum of the deltas, so that its parts in them say where it is."""
    center = _geometric_median(inner, weights)
    for _ in range(CLIPPINGS):
        far = _distances(inner, center)
        pull = weights * np.minimum(1.0, np.median(far) / np.maximum(far, _tiny(inner)))
        center = center * (1.0 - pull.sum()) + pull
    return center


def _geometric_median(inner: Array, weights: Array) -> Array:
    """Weiszfeld's steps from the mean."""
    center = weights
    for _ in range(STEPS_MAX):
        pull = weights / np.maximum(_distances(inner, center), _tiny(inner))
        moved = pull / pull.sum()
        if np.abs(moved - center).max() < 1e-9:
            break
        center = moved
    return center


def _distances(inner: Array, center: Array) -> Array:
    """Of each delta from the sum that `center` stands for."""
    squares = np.diag(inner) - 2 * inner @ center + center @ inner @ center
    lengths: Array = np.sqrt(np.maximum(squares, 0.0))
    return lengths


def _tiny(inner: Array) -> float:
    return float(1e-6 * np.sqrt(np.diag(inner).max()))


def _combined(deltas: Mapping[int, Tensors], shares: Mapping[int, float]) -> dict[str, Array]:
    first = next(iter(shares))
    made: dict[str, Array] = {}
    for name in deltas[first]:
        whole = np.zeros(deltas[first][name].shape, np.float32)
        for part, share in shares.items():
            whole += np.float32(share) * deltas[part][name]
        made[name] = whole
    return made
