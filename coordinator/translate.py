"""Between the wire and the core: protobuf on one side, the core's plain values on the other. No decisions."""

from collections.abc import Callable, Iterable

from coordinator.core.fleet import Fence, Guests, Served
from coordinator.core.jobs import JobId, Kind
from coordinator.core.live import Live
from coordinator.core.output import Piece
from coordinator.core.reading import Format
from potluck.v1 import session_pb2, work_pb2

KINDS = {kind.value: kind for kind in Kind}
FAULTS = {
    work_pb2.FAULT_JOB: "job",
    work_pb2.FAULT_WORKER: "worker",
    work_pb2.FAULT_NONE: "none",
    work_pb2.FAULT_UNSPECIFIED: "worker",
}
STATES = {
    session_pb2.MODEL_STATE_ABSENT: "absent",
    session_pb2.MODEL_STATE_DOWNLOADING: "downloading",
    session_pb2.MODEL_STATE_PRESENT: "present",
    session_pb2.MODEL_STATE_LOADING: "loading",
    session_pb2.MODEL_STATE_READY: "ready",
    session_pb2.MODEL_STATE_FAILED: "failed",
    session_pb2.MODEL_STATE_UNSPECIFIED: "failed",
}
FEATURES = frozenset({"tools", "json_schema", "reasoning", "lora"})
MODELS_MAX = 256
GPUS_MAX = 64
FEATURES_MAX = 32
NODES_MAX = 4_096
PERCENT_MAX = 100
CELSIUS_MAX = 200
WATTS_MAX = 10_000
GUESTS_MAX = 256
CHANGE_S_MAX = 30 * 86_400
WORDS_MAX = 300  # characters of anything a worker says that is shown to people
JOB_ID_CHARS_MAX = 256  # of what a worker says; ours are shorter


def fence(attempt: work_pb2.Attempt) -> Fence:
    return JobId(attempt.job_id[:JOB_ID_CHARS_MAX]), attempt.number


def attempt(job_id: str, number: int) -> work_pb2.Attempt:
    return work_pb2.Attempt(job_id=job_id, number=number)


def words(text: str) -> str:
    """A worker's words for people: one line, bounded, printable."""
    return "".join(c if c.isprintable() else " " for c in text[:WORDS_MAX])


def positive(value: float) -> float:
    return value if 0.0 < value < 1e9 else 0.0


def hardware(said: session_pb2.Hardware) -> session_pb2.Hardware:
    """What is kept of a machine's description: bounded, and fit to be shown."""
    kept = session_pb2.Hardware(
        system=words(said.system),
        cpu=words(said.cpu),
        cores=said.cores,
        memory_bytes=said.memory_bytes,
        disk_free_bytes=said.disk_free_bytes,
        cpu_features=[words(feature) for feature in list(said.cpu_features)[:FEATURES_MAX]],
        battery=said.battery,
        nodes=min(max(1, said.nodes), NODES_MAX),
    )
    for gpu in list(said.gpus)[:GPUS_MAX]:
        kept.gpus.add(
            name=words(gpu.name),
            memory_bytes=gpu.memory_bytes,
            backend=words(gpu.backend),
            driver=words(gpu.driver),
            capability=words(gpu.capability),
        )
    return kept


def load(said: session_pb2.MachineLoad) -> session_pb2.MachineLoad:
    """What is kept of a machine's load: bounded, and within what can be."""
    kept = session_pb2.MachineLoad(
        cpu_percent=min(said.cpu_percent, PERCENT_MAX),
        memory_free_bytes=said.memory_free_bytes,
        disk_free_bytes=said.disk_free_bytes,
        on_battery=said.on_battery,
    )
    for gpu in list(said.gpus)[:GPUS_MAX]:
        kept.gpus.add(
            memory_used_bytes=gpu.memory_used_bytes,
            utilisation_percent=min(gpu.utilisation_percent, PERCENT_MAX),
            temperature_c=min(gpu.temperature_c, CELSIUS_MAX),
            power_w=min(gpu.power_w, WATTS_MAX),
        )
    return kept


def served(models: Iterable[session_pb2.ServedModel], known: Callable[[str], bool]) -> list[Served]:
    """What a worker says that it serves; kinds and models that the pool does not know are left out."""
    return [
        Served(
            name=m.name,
            engine=words(m.engine),
            kinds=frozenset(KINDS[k] for k in m.kinds if k in KINDS),
            state=STATES.get(m.state, "failed"),
            slots=min(max(1, m.slots), 4_096),
            context_tokens=m.context_tokens,
            prefill=positive(m.prefill_tokens_per_s),
            decode=positive(m.decode_tokens_per_s),
            numerics=words(m.numerics),
            sampler=words(m.sampler),
            bytes_done=m.bytes_done,
            bytes_total=m.bytes_total,
            why=words(m.why),
            features=frozenset(feature for feature in m.features if feature in FEATURES),
        )
        for m in list(models)[:MODELS_MAX]
        if known(m.name)
    ]


def guests(said: session_pb2.Sharing) -> Guests:
    """Kinds are left out with each model already."""
    members, refused = list(said.members)[:GUESTS_MAX], list(said.members_refused)[:GUESTS_MAX]
    return Guests(frozenset(map(words, members)), frozenset(map(words, refused)))


def moment(at_ms: int, now: float) -> float | None:
    """Seconds since the epoch; None for what is unknown, over, or further away than anybody plans."""
    at = at_ms / 1000
    return at if now < at < now + CHANGE_S_MAX else None


def pieces(deltas: Iterable[work_pb2.Delta]) -> list[Piece]:
    return [
        Piece(
            choice=d.choice,
            offset=d.text_offset,
            text=d.text,
            token_ids=tuple(d.token_ids),
            finish_reason=d.finish_reason if d.finish_reason in {"", "stop", "length"} else "stop",
            logprobs=tuple(d.logprobs),
        )
        for d in deltas
    ]


def form(prompt: work_pb2.RenderedPrompt) -> Format:
    return Format(prompt.format.reasoning, prompt.format.reasoning_open, prompt.format.tools)


def digests(work: work_pb2.Work) -> frozenset[str]:
    """Of the artifacts that whoever does this work has to have."""
    training, adapter = work.training, work.adapter
    files = (training.examples, training.validation, training.adapter, training.state)
    found = {file.sha256 for file in files} | {adapter.weights_sha256, adapter.config_sha256}
    return frozenset(found - {""})


def assign(live: Live, number: int, why: str, work: work_pb2.Work, member: str) -> session_pb2.Assign:
    """The job for its newest attempt; from the second one on with what was delivered already."""
    message = session_pb2.Assign(
        attempt=attempt(live.job.id, number), model=live.job.model, work=work, why=why, member=member
    )
    if work.HasField("adapter"):
        message.adapter.CopyFrom(work.adapter)
        message.work.ClearField("adapter")
    if live.prompt is not None and (live.prompt.text or live.prompt.ids):  # else it was too long to be told
        message.continuation.prompt.CopyFrom(live.prompt)
    if live.output.begun:
        for index, choice in enumerate(live.output.choices):
            message.continuation.delivered.add(
                choice=index,
                text="".join(choice.parts),
                token_ids=choice.token_ids if choice.exact_ids else (),
                tokens=choice.tokens,
                finish_reason=choice.finish_reason,
            )
    return message
