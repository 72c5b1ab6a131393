"""A pause that was asked for from afar, as this machine heard it: a small file beside the owner's own word.

The owner's word on the machine goes first: `potluck worker resume` there takes back whatever was asked for
before it. Both are told apart by this machine's clock alone. The file survives restarts, so that a daemon
does not load models before the pool has told it again that it should not.
"""

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from potluck.home import write_atomic
from worker.policy import Pause
from worker.wish import Wish

FILE: Final = "asked.json"
BYTES_MAX: Final = 4_096


class AskedPause(BaseModel):
    """Times in seconds since the epoch. `number` 0: there is none. `heard_at`: by this machine's clock.

    `lifted`: its owner took it back on the machine, whatever the owner says afterwards.
    """

    model_config = ConfigDict(frozen=True)

    number: int = 0
    until: float | None = None
    why: str = ""
    heard_at: float = 0.0
    lifted: bool = False

    def save(self, folder: Path) -> None:
        """Raises OSError."""
        write_atomic(folder / FILE, self.model_dump_json().encode())

    @classmethod
    def load(cls, folder: Path) -> "AskedPause":
        """What cannot be read counts as none: the pool says it again, and the owner never said it."""
        try:
            with (folder / FILE).open("rb") as file:
                return cls.model_validate_json(file.read(BYTES_MAX))
        except (OSError, ValidationError):
            return cls()

    def answered(self, wish: Wish) -> bool:
        """Whether this word of the owner takes it back: one that was given since it was heard."""
        return bool(self.number) and wish.word == "share" and wish.given_at > self.heard_at

    def pause(self) -> Pause | None:
        return Pause(self.until, self.why) if self.number and not self.lifted else None
