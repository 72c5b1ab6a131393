"""API keys: what they look like, what is kept of them, and the admin's first one in a file."""

import hmac
import re
import secrets
import stat
import sys
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from potluck.home import write_secret

PREFIX: Final = "sk-potluck-"
ADMIN_KEY_FILE: Final = "admin.key"
_RANDOM_BYTES: Final = 32
_FILE_BYTES_MAX: Final = 256
_DISPLAY_CHARS: Final = len(PREFIX) + 6
_KEY = re.compile(r"sk-potluck-[A-Za-z0-9_-]{43}")


class KeyFileError(Exception):
    """The key file cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key at the only moment when it is known whole."""

    text: str = field(repr=False)

    @property
    def digest(self) -> str:
        return digest_of(self.text)

    @property
    def display(self) -> str:
        return self.text[:_DISPLAY_CHARS] + "…"


def generate() -> NewKey:
    """256 random bits: enough that a plain sha256 of it may be kept."""
    return NewKey(PREFIX + secrets.token_urlsafe(_RANDOM_BYTES))


def digest_of(key: str) -> str:
    """Hex sha256: what the database keeps and looks up."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def looks_like_key(text: str) -> bool:
    """Tells a mistyped or foreign key from an unknown one, without asking the database."""
    return _KEY.fullmatch(text) is not None


def same_digest(left: str, right: str) -> bool:
    """Compares in a time that says nothing about where they differ."""
    return hmac.compare_digest(left.encode(), right.encode())


def write_admin_key(folder: Path, key: NewKey) -> Path:
    """Put the first admin's key into `admin.key` (0600); an existing file is never replaced.

    Raises KeyFileError if there is one.
    """
    path = folder / ADMIN_KEY_FILE
    if path.exists():
        raise KeyFileError(f"{path} is there already: move it away first if this is to be a new pool.")
    write_secret(path, key.text.encode() + b"\n")
    return path


def read_admin_key(folder: Path) -> NewKey:
    """Raises FileNotFoundError, or KeyFileError if it holds no key or others can read it."""
    path = folder / ADMIN_KEY_FILE
    try:
        if sys.platform != "win32" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise KeyFileError(
                f"others can read {path}. If nobody has, close it with `chmod 600 {path}`; if not, delete it."
            )
        with path.open("rb") as file:
            text = file.read(_FILE_BYTES_MAX).decode("ascii", "replace").strip()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    if not looks_like_key(text):
        raise KeyFileError(f"{path} holds no API key. Restore it, or move it away to have a new one made.")
    return NewKey(text)
