"""Pauses of workers from afar: kept on the disk, told at once and at every hello, until they are over."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from coordinator.core.jobs import MemberId, WorkerId
from coordinator.core.pauses import AskedPause, refusal, words
from coordinator.refusal import Refusal
from coordinator.sessions import Sessions
from coordinator.store import Store
from potluck.v1 import session_pb2

_MS_PER_S = 1_000


@dataclass(slots=True)
class Pauses:
    """`now` in seconds since the epoch."""

    store: Store
    sessions: Sessions
    names: Mapping[MemberId, str]
    now: Callable[[], float]
    _known: dict[WorkerId, AskedPause] = field(default_factory=dict)
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)  # nobody asks between a check and its write

    async def recall(self) -> None:
        self._known = await self.store.asked_pauses()

    def of(self, worker: WorkerId) -> AskedPause | None:
        """The one in force."""
        pause = self._known.get(worker)
        return None if pause is None or pause.over(self.now()) else pause

    def words(self, pause: AskedPause) -> str:
        return words(pause, self.names.get(pause.member, pause.member))

    async def pause(
        self, worker: WorkerId, by: MemberId, *, owner: bool, until: float | None, why: str
    ) -> AskedPause:
        """Raises Refusal 409 if the owner's own is in force, and somebody else asks."""
        async with self._one:
            self._check(worker, owner=owner)
            before = self._known.get(worker)
            number = max(int(self.now() * _MS_PER_S), before.number + 1 if before else 1)
            pause = AskedPause(number=number, member=by, by_owner=owner, until=until, why=why)
            await self.store.put_pause(worker, pause)
            self._known[worker] = pause
            self._tell(worker)
        return pause

    async def resume(self, worker: WorkerId, *, owner: bool) -> bool:
        """False: nothing was asked for. Raises Refusal 409 as `pause`."""
        async with self._one:
            self._check(worker, owner=owner)
            pause = self._known.get(worker)
            if pause is None:
                return False
            await self._drop(worker, pause)
            self._tell(worker)
        return not pause.over(self.now())

    async def lifted(self, worker: WorkerId, number: int) -> None:
        """Its owner took this one back on the machine."""
        async with self._one:
            pause = self._known.get(worker)
            if pause is not None and pause.number == number:
                await self._drop(worker, pause)
                self._tell(worker)

    def message(self, worker: WorkerId) -> session_pb2.Pause:
        """What its worker is told, which may be that there is none."""
        pause = self.of(worker)
        if pause is None:
            return session_pb2.Pause()
        until_ms = 0 if pause.until is None else int(pause.until * _MS_PER_S)
        return session_pb2.Pause(number=pause.number, until_ms=until_ms, why=self.words(pause))

    def drain(self, worker: WorkerId, why: str) -> bool:
        """Finish what runs, then end the daemon. False: it is not here to hear it."""
        message = session_pb2.CoordinatorMessage(drain=session_pb2.Drain(why=why))
        return self.sessions.send(worker, message)

    async def _drop(self, worker: WorkerId, pause: AskedPause) -> None:
        await self.store.drop_pause(worker, pause.number)
        del self._known[worker]

    def _check(self, worker: WorkerId, *, owner: bool) -> None:
        if why := refusal(self.of(worker), owner=owner):
            raise Refusal(409, "paused_by_owner", f"This cannot be done: {why}.")

    def _tell(self, worker: WorkerId) -> None:
        """Nowhere while it is away: its next hello is answered with it."""
        self.sessions.send(worker, session_pb2.CoordinatorMessage(pause=self.message(worker)))
