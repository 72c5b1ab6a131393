"""An upload in parts as the pool keeps it: what the file will be, and which bytes of it are here."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from coordinator.core.jobs import MemberId
from coordinator.records import FileId, Purpose

PART_BYTES_MAX: Final = 64 << 20  # as OpenAI has it
PARTS_MAX: Final = 10_000  # of one upload
OPEN_MAX: Final = 16  # uploads of one member


class UploadState(StrEnum):
    """`status` of the OpenAI API."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Times are seconds since the epoch. `file_expires_s`: after the file was made.

    `bytes` are set aside of the member's quota while it is pending. It expires when no part came for a while.
    """

    id: str
    member: MemberId
    purpose: Purpose
    filename: str
    bytes: int
    file_expires_s: float | None
    created_at: float
    expires_at: float
    state: UploadState = UploadState.PENDING
    file: FileId | None = None

    def at(self, now: float) -> UploadState:
        """Time ends what is pending, also before anything has swept it."""
        over = self.state is UploadState.PENDING and self.expires_at <= now
        return UploadState.EXPIRED if over else self.state


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Its bytes are an artifact. The same bytes again are the same part."""

    id: str
    upload: str
    bytes: int
    sha256: str
    created_at: float
