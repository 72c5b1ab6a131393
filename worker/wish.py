"""The owner's word, given by `potluck worker pause|resume|drain`: a small file that the daemon looks at.

It survives restarts of both. A pause with an end is over by itself; a drain is meant for the daemon that runs
when it is given, and for no later one.
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from potluck.home import write_atomic
from worker.policy import Pause

FILE: Final = "owner.json"
BYTES_MAX: Final = 4_096

Word = Literal["share", "pause", "drain"]


class Wish(BaseModel):
    """Times in seconds since the epoch. `until` None: until another word. `process`: the daemon that is meant
    by a drain, by its pid and start."""

    model_config = ConfigDict(frozen=True)

    word: Word = "share"
    until: float | None = None
    given_at: float = 0.0
    process: tuple[int, float] = (0, 0.0)

    def save(self, folder: Path) -> None:
        """Raises OSError."""
        write_atomic(folder / FILE, self.model_dump_json().encode())

    @classmethod
    def load(cls, folder: Path) -> "Wish":
        """What cannot be read counts as a pause: it was written by an owner who wanted something."""
        try:
            with (folder / FILE).open("rb") as file:
                return cls.model_validate_json(file.read(BYTES_MAX))
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError):
            return cls(word="pause")

    def pause(self) -> Pause | None:
        return Pause(self.until) if self.word == "pause" else None
