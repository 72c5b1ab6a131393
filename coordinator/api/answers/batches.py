"""What the routes about batches answer, as the OpenAI API has it, with `potluck` beside it."""

from typing import Any, Literal

from typing_extensions import TypedDict

Seconds = int  # since the epoch


class BatchFault(TypedDict):
    code: str
    message: str
    line: int | None
    param: str | None


class BatchFaults(TypedDict):
    object: Literal["list"]
    data: list[BatchFault]


class RequestCounts(TypedDict):
    total: int
    completed: int
    failed: int


class BatchFacts(TypedDict):
    job_id: str


class BatchBody(TypedDict):
    """`potluck` names the job whose charge it is."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: Seconds
    expires_at: Seconds
    in_progress_at: Seconds | None
    finalizing_at: Seconds | None
    completed_at: Seconds | None
    failed_at: Seconds | None
    expired_at: Seconds | None
    cancelling_at: Seconds | None
    cancelled_at: Seconds | None
    request_counts: RequestCounts
    usage: dict[str, Any]
    metadata: dict[str, str] | None
    potluck: BatchFacts
