"""Small programs of the system that are asked for a fact: no shell, and bounds on time and words."""

import shutil
import subprocess
from typing import Final

ANSWER_S_MAX: Final = 2.0
ANSWER_CHARS_MAX: Final = 1 << 20


def said(*command: str) -> str | None:
    """What the command printed; None if it is not there, fails or does not answer in time."""
    path = shutil.which(command[0])
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *command[1:]],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=ANSWER_S_MAX,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout[:ANSWER_CHARS_MAX]
