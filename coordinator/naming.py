"""What members, keys and workers may be called: names that people can tell apart, on one line."""

import unicodedata
from typing import Final

from coordinator.store_errors import StoreError

CHARS_MAX: Final = 64
RESERVED: Final = {"commons", "the commons", "lines", "pool", "the pool", "potluck", "you", ".", ".."}
_INVISIBLE: Final = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
_SELECTORS: Final = (range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
_ALIKE: Final = {"LATIN", "CYRILLIC", "GREEK", "COPTIC", "ARMENIAN", "CHEROKEE"}  # scripts with equal letters


def clean_name(name: str) -> str:
    """The name in one Unicode form. Raises StoreError if it could not be shown on one line, or holds what
    nobody sees.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if not name or len(name) > CHARS_MAX or not name.isprintable() or any(map(_unseen, name)):
        raise StoreError(f"a name has 1 to {CHARS_MAX} characters that can be printed, on one line")
    return name


def member_name(name: str) -> str:
    """As above, of a member: whom credits are sent to must not be taken for another. Raises StoreError."""
    name = clean_name(name)
    if folded(name) in RESERVED or "/" in name:
        raise StoreError(f"nobody can be called {name} here: choose another name, without a slash")
    scripts = {unicodedata.name(c, "").partition(" ")[0] for c in name if c.isalpha()} & _ALIKE
    if len(scripts) > 1:
        raise StoreError("a name mixes no alphabets whose letters look alike: choose letters of one of them")
    return name


def folded(name: str) -> str:
    """What two spellings of one name have in common."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _unseen(character: str) -> bool:
    code = ord(character)
    return code in _INVISIBLE or any(code in selectors for selectors in _SELECTORS)
