"""A job as the API hands it to the pool, and what it gets back."""

import base64
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from coordinator.core.jobs import JobId, Kind
from coordinator.ids import new_id
from coordinator.records import ApiKey, Member
from coordinator.relay import JobEvent
from potluck.v1 import work_pb2

Wanted = Literal["mine", "trusted"] | tuple[str, ...] | None  # workers, by id or name


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One job as the API understood it. The seed is drawn already; `model` is the catalogue's name.

    `tuned`: the name of the model that was asked for, where it is an adapter on top of `model`; the work then
    names its files.
    """

    kind: Kind
    model: str
    member: Member
    key: ApiKey | None  # with which it was asked; its limits and models count beside the member's
    work: work_pb2.Work
    prompt_tokens: int
    max_tokens: int
    choices: int
    prompts: tuple[int, ...] = ()  # of an embedding: the tokens of each input
    exact: bool = True  # False: these counts are upper bounds, the model's tokenizer is not known
    stored: bool = False
    workers: Wanted = None
    wait_s: float | None = None  # for a worker; the pool has a limit of its own
    idempotency_key: str | None = None
    tuned: str = ""
    back: bool = False  # it says that it was refused before, and comes back

    @property
    def name(self) -> str:
        """What the member calls the model."""
        return self.tuned or self.model


@dataclass(frozen=True, slots=True)
class Ticket:
    """`events` end with one Closed. Leaving them early does not cancel the job. `replayed`: the job was
    submitted before under the same Idempotency-Key; it is not a new one."""

    job_id: str
    quote: int
    replayed: bool
    events: AsyncIterator[JobEvent]


def job_id_of(s: Submission) -> JobId:
    """Random; or derived from the member and its Idempotency-Key, so that a retry names the same job."""
    if s.idempotency_key is None:
        return JobId(new_id("job"))
    cause = f"{s.member.id}\n{s.idempotency_key}".encode()
    digest = hashlib.sha256(cause).digest()[:15]
    return JobId(f"job_{base64.b32encode(digest).decode().lower()}")
