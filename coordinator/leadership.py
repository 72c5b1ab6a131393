"""Which of several coordinators on one PostgreSQL may write: its leader, and nobody else, at any moment.

One row has the leader's epoch and its beat. The leader raises the beat twice a second (`beats`); who waits
watches it, and takes over when it stood still for four seconds of watching, or when the row says that nobody
leads. No clocks are compared, and time in which the database did not answer does not count: the leader could
not beat either.

To take over is to raise the epoch. Each of the leader's transactions first locks the row of its own epoch
(`FOR KEY SHARE`): a takeover waits for those that run, and none begins after it. So a leader that was stopped
and wakes up can write nothing; it notices with its next beat or write, and ends. Beats change no key and wait
for no such lock (postgresql.org, "Row-Level Locks"). PostgreSQL itself ends transactions in which a stopped
process fell asleep (dialect.POSTGRES_WRITER), so that no takeover waits for them.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from coordinator.beats import Beats
from coordinator.lock import AlreadyRunning
from coordinator.migrations import migrate
from coordinator.store_errors import LeadershipLost

BEAT_S: Final = 0.5
WATCH_S: Final = 0.25
SILENT_S: Final = 4.0
KNOWN_S: Final = 86_400.0  # who was not seen for so long is not named to workers any more
_FOUNDING: Final = 0x706F746C  # two coordinators that make the tables at once do so one after the other

_THERE = text("SELECT to_regclass('leader') IS NOT NULL")
_LOCK = text("SELECT pg_advisory_xact_lock(:key)").bindparams(key=_FOUNDING)
_LOOK = text("SELECT epoch, beat, held, http, grpc FROM leader")
_TAKE = text(
    "UPDATE leader SET epoch = epoch + 1, beat = 0, held = true, http = :http, grpc = :grpc"
    " WHERE epoch = :epoch AND beat = :beat RETURNING epoch"
)
_BEAT = text("UPDATE leader SET beat = beat + 1 WHERE epoch = :epoch RETURNING epoch")
_FENCE = text("SELECT epoch FROM leader WHERE epoch = :epoch FOR KEY SHARE")
_RESIGN = text("UPDATE leader SET held = false WHERE epoch = :epoch")
_SEEN = text(
    "INSERT INTO standbys (grpc, seen_at) VALUES (:grpc, extract(epoch FROM clock_timestamp()))"
    " ON CONFLICT (grpc) DO UPDATE SET seen_at = excluded.seen_at"
)
_KNOWN = text(
    "SELECT grpc FROM standbys WHERE grpc <> :own"
    " AND seen_at > extract(epoch FROM clock_timestamp()) - :known ORDER BY seen_at DESC LIMIT 8"
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a coordinator is reached: `http` a URL, `grpc` HOST:PORT; both empty for a tool."""

    http: str = ""
    grpc: str = ""


NewEngine = Callable[[], AsyncEngine]
Waiting = Callable[[Seat, bool], None]  # who leads, and whether it was seen to live since the last look


@dataclass(frozen=True, slots=True)
class _Row:
    epoch: int
    beat: int
    held: bool
    seat: Seat


class LedElsewhere(AlreadyRunning):
    """Another coordinator leads the pool; the message says where."""

    def __init__(self, seat: Seat) -> None:
        where = f" at {seat.http}" if seat.http else ""
        Exception.__init__(
            self, f"a coordinator{where} runs on this database. Stop it first, and those that wait beside it."
        )
        self.pid = None


class Leadership:
    """Held from `claim` until `resign`, or until somebody else took over: then `lost` has the reason."""

    def __init__(self, engine: AsyncEngine, seat: Seat, epoch: int, another: NewEngine) -> None:
        self._engine, self.seat, self.epoch = engine, seat, epoch
        self.lost: asyncio.Future[LeadershipLost] = asyncio.get_running_loop().create_future()
        self.others: Sequence[str] = ()  # HOST:PORT of coordinators that wait, for workers
        self.on_others: Callable[[], None] = lambda: None  # they are others than before
        self._beating = Beats(another, self._beat, self._heard, BEAT_S)

    @classmethod
    async def claim(
        cls,
        another: NewEngine,
        engine: AsyncEngine,
        seat: Seat,
        waiting: Waiting | None = None,
    ) -> "Leadership":
        """Wait until nobody leads, and bring the database to its newest shape in the same step.

        `another` makes an engine like `engine` for the beat, which has a thread of its own.
        `waiting` is called at each look; without one, a living leader is refused. The engine's transactions
        must be READ COMMITTED. Raises LedElsewhere, DatabaseNewer, or the driver's errors if the database
        does not answer the first time.
        """
        loop = asyncio.get_running_loop()
        watched: _Row | None = None
        since, looked = loop.time(), False
        while True:
            epoch = None
            try:
                async with engine.begin() as connection:
                    row = await _look(connection)
                    dead = row == watched and loop.time() - since >= SILENT_S
                    if not row.held or dead:
                        epoch = await _take(connection, row, seat)
                    elif waiting is not None and seat.grpc:
                        await connection.execute(_SEEN, {"grpc": seat.grpc})
            except (DBAPIError, OSError) as error:
                if not looked:
                    raise
                log.warning("the database does not answer", action="standby_blind", why=str(error)[:200])
                watched = None
            else:
                if epoch is not None:
                    log.info("this coordinator leads", action="leading", epoch=epoch)
                    return cls(engine, seat, epoch, another)
                alive = watched is not None and watched != row
                if waiting is not None:
                    waiting(row.seat, alive)
                elif alive:
                    raise LedElsewhere(row.seat)
                if row != watched:
                    watched, since = row, loop.time()
                looked = True
            await asyncio.sleep(WATCH_S)

    async def fence(self, connection: AsyncConnection) -> None:
        """The first statement of each transaction that writes. Raises LeadershipLost."""
        if (await connection.execute(_FENCE, {"epoch": self.epoch})).scalar() is None:
            raise self._lose()

    async def resign(self) -> None:
        """Whoever waits takes over at once. Best effort: otherwise they notice the silence."""
        self._beating.cancel()
        await self._beating.ended()
        with contextlib.suppress(DBAPIError, OSError):
            async with self._engine.begin() as connection:
                await connection.execute(_RESIGN, {"epoch": self.epoch})

    async def _beat(self, engine: AsyncEngine) -> "tuple[str, ...] | bool":
        """Those that wait, as HOST:PORT; False if another one leads, True if the database does not say."""
        try:
            async with asyncio.timeout(SILENT_S), engine.begin() as connection:
                if (await connection.execute(_BEAT, {"epoch": self.epoch})).scalar() is None:
                    return False
                asked = {"own": self.seat.grpc, "known": KNOWN_S}
                return tuple((await connection.execute(_KNOWN, asked)).scalars().all())
        except (DBAPIError, OSError) as error:  # what is to be written tells those who wait for it
            log.warning("no beat", action="leader_no_beat", why=str(error)[:200])
            return True

    def _heard(self, told: "tuple[str, ...] | bool") -> None:
        if told is False:
            self._beating.cancel()
            self._lose()
        elif told is not True and told != self.others:
            self.others = told
            self.on_others()

    def _lose(self) -> LeadershipLost:
        error = LeadershipLost(
            "another coordinator has taken over this pool, since this one was not heard of: nothing was"
            " changed here any more. Start it again, and it waits beside the new one."
        )
        if not self.lost.done():
            log.critical("another coordinator has taken over", action="leadership_lost", epoch=self.epoch)
            self.lost.set_result(error)
        return error


async def _look(connection: AsyncConnection) -> _Row:
    """The row as it is; a database without one gets its tables first."""
    if not (await connection.execute(_THERE)).scalar():
        await connection.execute(_LOCK)
        if not (await connection.execute(_THERE)).scalar():
            await connection.run_sync(_bring_forward)
    found = (await connection.execute(_LOOK)).one()
    return _Row(found.epoch, found.beat, found.held, Seat(found.http, found.grpc))


async def _take(connection: AsyncConnection, row: _Row, seat: Seat) -> int | None:
    """The new epoch; None if somebody else was faster, or the leader has moved."""
    asked = {"epoch": row.epoch, "beat": row.beat, "http": seat.http, "grpc": seat.grpc}
    epoch = (await connection.execute(_TAKE, asked)).scalar()
    if epoch is None:
        return None
    await connection.run_sync(_bring_forward)  # nobody else can write meanwhile: the row is locked
    if row.seat.grpc and row.seat != seat:  # it may come back there
        await connection.execute(_SEEN, {"grpc": row.seat.grpc})
    return int(epoch)


def _bring_forward(connection: Connection) -> None:
    migrate(connection)
