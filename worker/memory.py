"""The memory that the models of one daemon share: who is in it, who leaves for whom, who waits."""

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

from worker.budget import Resident, make_room

WAIT_S_MAX: Final = 10.0  # for models that work; whoever waits for an answer is better served elsewhere then


class NoRoom(Exception):  # noqa: N818 -- named for what happened
    """The model does not fit now; the sentence says beside what."""


class Tenant(Protocol):
    """A model as its memory knows it."""

    @property
    def name(self) -> str: ...
    def resident(self) -> Resident: ...
    def leave(self) -> None:
        """Unload as soon as nothing runs; `Memory.give` follows."""


class Memory:
    """`caps`: bytes for all models together, by place."""

    def __init__(self, caps: Mapping[str, int], *, wait_s: float = WAIT_S_MAX) -> None:
        self.caps, self._wait_s = dict(caps), wait_s
        self._tenants: dict[str, Tenant] = {}
        self._turn = asyncio.Lock()  # first come, first served: a large model is not overtaken for ever
        self._changed = asyncio.Event()

    async def take(self, tenant: Tenant, *, evict: bool) -> None:
        """Returns when the model may be loaded; `evict`: others leave for it, once they are idle.

        Raises NoRoom if it can never fit, or not for a while.
        """
        wanted, why = tenant.resident(), ""
        try:
            async with asyncio.timeout(self._wait_s), self._turn:
                while True:
                    self._changed.clear()
                    residents = [other.resident() for other in self._tenants.values()]
                    room = make_room(wanted.name, wanted.place, wanted.size_bytes, residents, self.caps)
                    why = room.never or room.wait or f"{wanted.name} waits until {', '.join(room.evict)} left"
                    if room.never or (room.evict and not evict) or (room.wait and not evict):
                        raise NoRoom(why)
                    if not room.wait and not room.evict:
                        self._tenants[wanted.name] = tenant
                        return
                    for name in room.evict:
                        self._tenants[name].leave()
                    await self._changed.wait()
        except TimeoutError:
            raise NoRoom(why or f"{wanted.name} waits behind other models that load") from None

    def give(self, tenant: Tenant) -> None:
        """The model has left memory."""
        if self._tenants.pop(tenant.name, None) is not None:
            self._changed.set()

    def stir(self) -> None:
        """A model has become idle, or smaller."""
        self._changed.set()
