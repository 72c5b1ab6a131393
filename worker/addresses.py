"""Where a worker finds its pool: the address that it joined by, and those that the pool has told it since.

A pool may have several coordinators, of which one leads. Nobody is at the port of those that wait, so a
worker goes from address to address until it is welcomed.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from worker.membership import Membership

ADDRESSES_MAX: Final = 8
ADDRESS_CHARS_MAX: Final = 512


class Addresses:
    """`current` is where to try, and the rest come in turn."""

    def __init__(self, first: str, told: Iterable[str] = ()) -> None:
        self._known = _distinct((first, *told))
        self._at = 0

    @classmethod
    def of(cls, membership: Membership) -> "Addresses":
        return cls(membership.grpc, membership.coordinators)

    @property
    def current(self) -> str:
        return self._known[self._at]

    @property
    def known(self) -> Sequence[str]:
        return tuple(self._known)

    def turn(self) -> bool:
        """To the next one. True: all were tried, and it is the first one's turn again."""
        self._at = (self._at + 1) % len(self._known)
        return self._at == 0

    def learn(self, told: Iterable[str]) -> bool:
        """What the pool says now; where it was found stays known. Whether anything is new."""
        current = self.current
        known = _distinct((current, *told, *self._known))
        changed = set(known) != set(self._known)
        self._known, self._at = known, 0
        return changed


def _distinct(addresses: Iterable[str]) -> list[str]:
    """The first ones, each once; what could be no address is left out."""
    good = (a for a in addresses if ":" in a and a.isprintable() and len(a) <= ADDRESS_CHARS_MAX)
    return list(dict.fromkeys(good))[:ADDRESSES_MAX]
