"""Peers in environments of their own: fixed versions, made once, in the user's cache."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import platformdirs

INSTALL_S_MAX: Final = 900.0


class NotThere(Exception):  # noqa: N818 -- named for what happened
    """The peer cannot be installed, or does not start; the sentence says why."""


def environment(package: str, version: str, *more: str, extra: str = "") -> Path:
    """Its folder of programs. Made at the first call. Raises NotThere."""
    folder = Path(platformdirs.user_cache_dir("potluck", appauthor=False)) / f"{package}-{version}"
    whole = folder / "whole"  # the last file to be written
    if not whole.exists():
        print(f"installing {package} {version} into {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        wanted = f"{package}[{extra}]=={version}" if extra else f"{package}=={version}"
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", wanted, *more],
        ):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S_MAX)
            except (OSError, subprocess.SubprocessError) as error:
                said = (getattr(error, "stderr", "") or "").strip().splitlines()
                raise NotThere(f"{package} cannot be installed: {said[-1] if said else error}") from None
        whole.touch()
    return folder / "bin"
