"""What the running daemon does right now, in a small file for `potluck worker status` and for people."""

import contextlib
from pathlib import Path
from typing import Final, Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from potluck.home import write_atomic
from worker.earned import Earned

STATE_FILE: Final = "state.json"
STATE_BYTES_MAX: Final = 1024 * 1024

State = Literal["starting", "connecting", "sharing", "paused", "draining", "stopped", "not running"]


class RunningFor(BaseModel):
    """One attempt, and for whom."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    attempt: int
    model: str
    member: str
    tokens: int
    since: float
    steps_done: int = 0  # of a fine-tune, and of `steps` in all; 0: it is no training
    steps: int = 0


class ModelNow(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    engine: str
    state: str
    why: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    eta_s: float = 0.0  # until it is ready; 0: unknown
    memory_bytes: int = 0


class CardNow(BaseModel):
    model_config = ConfigDict(frozen=True)

    index: int
    temperature_c: float | None = None
    power_w: float | None = None


class WorkerState(BaseModel):
    """Times are seconds since the epoch. `process_started` tells a daemon from another with its pid.

    `next_change`: when it begins or ends to share by itself; `notes`: rules that cannot be kept here.
    """

    model_config = ConfigDict(frozen=True)

    pid: int = 0
    process_started: float = 0.0
    state: State = "not running"
    why: str = ""
    next_change: float | None = None
    notes: tuple[str, ...] = ()
    worker_id: str = ""
    name: str = ""
    pool: str = ""
    member: str = ""
    started_at: float = 0.0
    updated_at: float = 0.0
    threads: int = 0
    attempts: tuple[RunningFor, ...] = ()
    models: tuple[ModelNow, ...] = ()
    cards: tuple[CardNow, ...] = ()
    tokens_per_s: float = 0.0
    earned: Earned = Earned()
    attempts_served: int = 0
    tokens_served: int = 0
    receipts_waiting: int = 0
    receipts_countersigned: int = 0  # kept here, signed by the pool, the owner's own proof

    @property
    def runs(self) -> bool:
        """Whether there is a daemon."""
        return self.state not in {"not running", "stopped"}

    def save(self, folder: Path) -> None:
        """Not made durable: after a crash of the machine there is no daemon to tell of."""
        write_atomic(folder / STATE_FILE, self.model_dump_json(indent=2).encode(), durable=False)

    @classmethod
    def load(cls, folder: Path) -> "WorkerState":
        """The state now: of a daemon that is gone without a word it says so."""
        path = folder / STATE_FILE
        try:
            with path.open("rb") as file:
                found = cls.model_validate_json(file.read(STATE_BYTES_MAX))
        except FileNotFoundError:
            return cls(why="it was never started here: potluck worker start")
        except (OSError, ValidationError):
            return cls(why=f"{path} cannot be read")
        if found.state == "stopped" or lives(found.pid, found.process_started):
            return found
        return found.model_copy(
            update={
                "state": "not running",
                "why": f"its process {found.pid} is gone without a farewell; its receipts are kept on disk",
                "attempts": (),
                "models": (),
                "cards": (),
                "next_change": None,
                "tokens_per_s": 0.0,
            }
        )


def lives(pid: int, process_started: float) -> bool:
    """Whether the process still runs, and is not another that got its number."""
    if pid <= 0:
        return False
    with contextlib.suppress(psutil.Error):
        return abs(process_start(pid) - process_started) < 1.0 and psutil.Process(pid).status() != "zombie"
    return False


def process_start(pid: int) -> float:
    """Seconds since the epoch. Raises psutil.Error."""
    return psutil.Process(pid).create_time()
