"""The engines' libraries: which are installed, whether they can be imported, and what torch says of cards.

Versions are read from the packages' metadata, without an import. The rest is asked in a process of its own
and remembered until a version changes, since it takes seconds.
"""

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from potluck.home import write_atomic
from worker.machine import Library, Torch

MODULES: Final = ("torch", "transformers", "peft", "xllamacpp")
UNASKED: Final = {"peft"}  # it only imports two of the others; a trainer that does not load says why
FILE: Final = "libraries.json"
FILE_BYTES_MAX: Final = 1 << 20
SURVEY_S_MAX: Final = 180.0  # for each module, on a cold disk and an old processor
KEPT_S: Final = 7 * 86_400.0


class Survey(BaseModel):
    """`of`: what was installed, so that another version is asked anew. `at`: seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    of: dict[str, str]
    at: float
    libraries: dict[str, Library]
    torch: Torch | None = None


@dataclass(frozen=True, slots=True)
class Surveys:
    """`folder` keeps the last one; `driver` is part of what it depends on."""

    folder: Path
    driver: str = ""

    def remembered(self, now: float) -> Survey | None:
        """None if there is none, or if it no longer is of what is installed."""
        try:
            with (self.folder / FILE).open("rb") as file:
                found = Survey.model_validate_json(file.read(FILE_BYTES_MAX))
        except (OSError, ValidationError):
            return None
        return found if found.of == self._of() and 0 <= now - found.at < KEPT_S else None

    def ask(self, now: float) -> Survey:
        """Blocking for seconds: imports each in another process. Kept, if the disk lets us."""
        libraries, torch = {}, None
        for name, version in installed().items():
            answer = survey(name) if name not in UNASKED else {}
            error, cards = str(answer.get("error", "")), answer.get("cards", ())
            libraries[name] = Library(version=version, error=error, cards=cards)
            if name == "torch" and answer.get("torch"):
                torch = Torch.model_validate(answer["torch"])
        made = Survey(of=self._of(), at=now, libraries=libraries, torch=torch)
        with contextlib.suppress(OSError):
            write_atomic(self.folder / FILE, made.model_dump_json(indent=2).encode(), durable=False)
        return made

    def _of(self) -> dict[str, str]:
        return {**installed(), "python": sys.version, "driver": self.driver}


def installed() -> dict[str, str]:
    """The version of each that is there."""
    found = {}
    for name in MODULES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def survey(module: str, *, timeout_s: float = SURVEY_S_MAX) -> dict[str, Any]:
    """What importing the module says: `error` in words, or nothing; for torch also `torch`."""
    command = [sys.executable, "-P", "-m", "worker.engines.survey", module]  # -P: no torch.py of this folder
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"importing it took more than {timeout_s:.0f} s"}
    except OSError as error:
        return {"error": f"no process could be started: {error.strerror}"}
    if done.returncode:
        return {"error": _ending(done.returncode)}
    try:  # the last line: libraries print, too
        answer = json.loads(done.stdout[-FILE_BYTES_MAX:].splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": "importing it printed nonsense"}
    return answer if isinstance(answer, dict) else {}


def _ending(code: int) -> str:
    """-4 is SIGILL: built for another processor."""
    if code in (-4, 0xC000001D, 0xC000001D - (1 << 32)):
        return "it is built for a newer processor than this one (illegal instruction)"
    return f"importing it ends the process (code {code})"
