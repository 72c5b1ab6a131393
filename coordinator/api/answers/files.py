"""What the routes about files and uploads answer, as the OpenAI API has it, with `potluck` beside it."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Seconds = int  # since the epoch


class FileFacts(TypedDict):
    sha256: str


class FileBody(TypedDict):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: Seconds
    expires_at: Seconds
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None
    potluck: FileFacts


class PartFacts(TypedDict):
    bytes: int
    sha256: str


class PartIs(PartFacts):
    id: str


class PartsFacts(TypedDict):
    bytes: int
    parts: list[PartIs]


class UploadBody(TypedDict):
    """`potluck`: which parts are here, where one upload is asked for."""

    id: str
    object: Literal["upload"]
    bytes: int
    created_at: Seconds
    expires_at: Seconds
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileBody | None
    potluck: NotRequired[PartsFacts]


class PartBody(TypedDict):
    id: str
    object: Literal["upload.part"]
    created_at: Seconds
    upload_id: str
    potluck: PartFacts
