"""What the pool's own routes answer about work, the machines that do it, and the books. Times: RFC 3339."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from coordinator.api.answers.batches import BatchBody
from coordinator.api.answers.finetunes import FinetuneBody
from coordinator.api.answers.people import Named

Micro = int  # microcredits
Time = str
Hash = str


# -- the pool -----------------------------------------------------------------------------------------------


class WorkersNow(TypedDict):
    sharing: int
    enrolled: int


class JobsNow(TypedDict):
    running: int
    queued: int


class Status(TypedDict):
    """`ledger_sum` is 0."""

    pool: str
    version: str
    workers: WorkersNow
    jobs: JobsNow
    models: list[str]
    commons: Micro
    ledger_sum: int
    coordinator_public_key: str


class Quote(TypedDict):
    quote: Micro
    prompt_tokens: int
    max_tokens: int
    model: str


class Price(TypedDict):
    prompt_1000_tokens: Micro
    output_1000_tokens: Micro


class ModelNow(TypedDict):
    """`base`, `member` and `shared` are a tuned model's."""

    name: str
    family: str
    licence: str
    kinds: list[str]
    context_tokens: int
    parameters: int
    state: str
    workers: int
    engines: list[str]
    features: list[str]
    decode_tokens_per_s: float
    price: Price
    base: NotRequired[str]
    member: NotRequired[str]
    shared: NotRequired[bool]


class KeptFile(TypedDict):
    name: str
    bytes: int
    sha256: str


class Shared(TypedDict):
    name: str
    shared: bool


# -- jobs ---------------------------------------------------------------------------------------------------


class AttemptBody(TypedDict):
    number: int
    worker: str
    state: str
    assigned_at: Time | None
    ended_at: Time | None
    tokens: int
    paid: Micro
    why: str | None


class JobBody(TypedDict):
    """`charge` is null while the job is open. `whole`: the job of the batch or fine-tune it belongs to."""

    id: str
    kind: str
    state: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled", "expired"]
    model: str
    member: str
    whole: str | None
    quote: Micro
    hold: Micro
    charge: Micro | None
    prompt_tokens: int
    output_tokens: int
    stored: bool
    created_at: Time | None
    started_at: Time | None
    ended_at: Time | None
    code: str | None
    why: str | None
    attempts: list[AttemptBody]


class JobPart(JobBody):
    part: int


class Receipt(TypedDict):
    """`body` is the signed text as it came; the signatures are base64."""

    number: int
    attempt: int
    worker: str
    state: str
    why: str
    at: Time
    body: str
    signature: str
    previous: Hash
    hash: Hash
    countersignature: str


class Timing(TypedDict):
    """Seconds; null where it is not so far, or not known."""

    waited_s: float | None
    prefill_s: float | None
    decode_s: float | None
    total_s: float | None


class InLine(TypedDict):
    place: int
    of: int
    expected_start_s: float | None
    why: str


class OneJob(JobBody):
    """`queue` while it waits for a worker; `batch` and `finetune` where it is one."""

    timing: Timing
    receipts: list[Receipt]
    queue: NotRequired[InLine]
    batch: NotRequired[BatchBody]
    finetune: NotRequired[FinetuneBody]


class NewJob(TypedDict):
    id: str
    quote: Micro


class CancelledJob(TypedDict):
    id: str
    state: str
    cancelled: bool


# -- workers ------------------------------------------------------------------------------------------------


class PauseBody(TypedDict):
    by: str
    owner: bool
    until: Time | None
    why: str


class ServedModelBody(TypedDict):
    name: str
    engine: str
    state: str
    why: str
    slots: int
    features: list[str]
    bytes_done: int
    bytes_total: int


class Speed(TypedDict):
    """Tokens a second."""

    prefill: float
    decode: float


class WorkerBody(TypedDict):
    """`proven`, `missing` and `held`: in a pool of strangers."""

    id: str
    name: str
    member: str
    state: str
    why: str
    pause: PauseBody | None
    next_change: Time | None
    models: list[ServedModelBody]
    engines: list[str]
    hardware: dict[str, Any] | None
    load: dict[str, Any] | None
    speed: dict[str, Speed]
    running: int
    reliability: float
    earned: Micro
    heard_at: Time | None
    proven: NotRequired[bool]
    missing: NotRequired[str]
    held: NotRequired[Micro]


class EarnedDay(TypedDict):
    day: str
    earned: Micro


class TriedBody(TypedDict):
    job: str
    number: int
    kind: str
    model: str
    member: str
    state: str
    why: str
    assigned_at: Time | None
    ended_at: Time | None
    tokens: int
    paid: Micro
    held: bool


class OneWorker(WorkerBody):
    """`attempts`: for its owner and admins."""

    enrolled_at: Time | None
    revoked_at: Time | None
    certificate_until: Time | None
    days: list[EarnedDay]
    attempts: NotRequired[list[TriedBody]]


class RevokedWorker(Named):
    revoked_at: Time | None


class Vouched(TypedDict):
    id: str
    released: Micro


class NewJoinToken(TypedDict):
    """The token is shown this once."""

    id: str
    token: str
    uses: int
    expires_at: Time | None
    commands: list[str]


class JoinTokenBody(TypedDict):
    id: str
    uses: int
    uses_max: int
    expires_at: Time | None
    workers: list[Named]


class Certificates(TypedDict):
    """Both in PEM."""

    certificate: str
    ca: str


class Enrolled(Certificates):
    worker_id: str
    name: str
    member: str
    pool: str
    public_key: str
    grpc: str


# -- the ledger ---------------------------------------------------------------------------------------------


class HeadLine(TypedDict):
    """The signed ends of the ledger and of the receipts."""

    type: Literal["head"]
    number: int
    hash: Hash
    receipts_number: int
    receipts_hash: Hash
    at: Time
    reason: str
    signature: str


class NewestHead(HeadLine):
    pool: str
    public_key: str


class EntryLine(TypedDict):
    """`postings`: account, bucket, amount. `details` where they concern the caller."""

    type: Literal["entry"]
    number: int
    at: Time
    id: str
    code: str
    job: str | None
    postings: list[tuple[str, str, Micro]]
    details_sha256: Hash
    details: NotRequired[str]
    previous: Hash
    hash: Hash
