"""The terms of a pool and its announcement, as values."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from coordinator.core.jobs import MemberId

TERMS_CHARS_MAX: Final = 20_000
ANNOUNCEMENT_CHARS_MAX: Final = 300


class Level(StrEnum):
    INFO = "info"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """A version of the text that members accept. An empty text asks nothing of anybody."""

    version: int  # from 1
    text: str
    at: float
    by: MemberId

    @property
    def paragraphs(self) -> list[str]:
        """As a page shows them: blank lines part them."""
        return [part for block in self.text.split("\n\n") if (part := block.strip())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """One line on all pages, until `expires_at` if it has one."""

    text: str
    level: Level
    at: float
    expires_at: float | None = None

    def shown(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at
