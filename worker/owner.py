"""The owner's word and the owner's rules, looked at again and again while the daemon runs."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import structlog

from worker.asked import AskedPause
from worker.policy import Observation, Pause, Rules, Verdict, judge
from worker.wish import Wish

WISH_S: Final = 1.0  # how soon a word of the owner is heard
LOOK_S: Final = 2.0  # how soon it is seen that somebody else uses the machine


class Looks(Protocol):
    """What sees the machine; blocking."""

    def look(self, pause: Pause | None) -> Observation: ...


class Owner:
    """Calls `on_verdict` whenever what may be shared, or why not, has changed, and `on_drain` once.

    `process`: this daemon, by its pid and start. `clock` is the clock on the wall: hours and pauses go by it.
    """

    def __init__(
        self,
        *,
        rules: Rules,
        machine: Looks,
        folder: Path,
        process: tuple[int, float],
        on_verdict: Callable[[Verdict], None],
        on_drain: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.verdict = Verdict(sharing=True, why="", next_change=None)
        self.seen = Observation()
        self._rules, self._machine, self._folder, self._process = rules, machine, folder, process
        self._on_verdict, self._on_drain, self._clock = on_verdict, on_drain, clock
        self._asked = AskedPause.load(folder)
        self._drained = False
        self._log = structlog.get_logger("worker.owner")

    async def begin(self) -> None:
        """The first look, before anything is shared."""
        await self._look()
        for note in self.verdict.notes:
            self._log.warning(note, action="rule_not_kept")

    async def run(self) -> None:
        """Until cancelled. A look that hangs, as a driver may, does not keep the owner's word from us."""
        looking, looked_at = None, asyncio.get_running_loop().time()
        try:
            while True:
                await asyncio.sleep(WISH_S)
                self.heed()
                now = asyncio.get_running_loop().time()
                if looking is not None and looking.done():
                    looking.result()
                    looking = None
                if looking is None and now - looked_at >= LOOK_S:
                    looking, looked_at = asyncio.create_task(self._look()), now
        finally:
            if looking is not None:
                looking.cancel()

    async def _look(self) -> None:
        self.seen = await asyncio.to_thread(self._machine.look, None)
        self.heed()

    @property
    def lifted(self) -> int:
        """The number of a pause from afar that the owner took back here; 0: none."""
        return self._asked.number if self._asked.lifted else 0

    def ask(self, asked: AskedPause) -> None:
        """A pause is asked for from afar, or none any more. The same one again was heard before."""
        if asked.number == self._asked.number:
            return
        self._keep(asked.model_copy(update={"heard_at": self._clock()}))
        self.heed()

    def _keep(self, asked: AskedPause) -> None:
        self._asked = asked
        try:
            asked.save(self._folder)
        except OSError as error:
            self._log.warning("what was asked for is not kept", action="asked_not_kept", why=str(error))

    def heed(self) -> None:
        """Read the owner's word, and judge by it, by what was asked from afar, and by what was seen last."""
        wish = Wish.load(self._folder)
        if wish.word == "drain" and wish.process == self._process and not self._drained:
            self._drained = True
            self._on_drain("its owner drains it")
        if not self._asked.lifted and self._asked.answered(wish):
            self._keep(self._asked.model_copy(update={"lifted": True}))
        seen = replace(self.seen, pause=wish.pause(), asked=self._asked.pause())
        before, self.verdict = self.verdict, judge(self._rules, seen, self._clock(), self.verdict)
        same = (before.sharing, before.why, before.next_change)
        if same != (self.verdict.sharing, self.verdict.why, self.verdict.next_change):
            self._on_verdict(self.verdict)
