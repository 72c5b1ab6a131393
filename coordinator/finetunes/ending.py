"""What a fine-tune leaves: the curve as a file, and the model with its configuration and its card."""

import csv
import hashlib
import io
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Final

import structlog

from coordinator.artifacts import NoSuchArtifact
from coordinator.files import Files
from coordinator.finetunes.card import card, checkpoint_card
from coordinator.finetunes.curve import Point, means, metrics
from coordinator.finetunes.disk import Disk
from coordinator.finetunes.finetune import Checkpoint, Event, Finetune
from coordinator.finetunes.made import Made
from coordinator.pool import Pool
from coordinator.records import FileId, Purpose
from coordinator.store import Store
from coordinator.training_store import TrainingStore
from coordinator.tuned.model import CARD_NAME, Kept, TunedModel
from potluck import lora
from potluck.catalogue import HuggingFace, ModelEntry

log = structlog.get_logger(__name__)
COLUMNS: Final = (
    *("step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy"),
    *("full_valid_loss", "full_valid_mean_token_accuracy", "tokens", "learning_rate", "gradient_norm"),
)
CSV_BYTES_MAX: Final = 1 << 30


def curve_of(made: Iterable[Made], valid: Mapping[int, Mapping[str, float]]) -> list[dict[str, float]]:
    """Every step that was paid, with what validations found; by the OpenAI API's names."""
    points: dict[int, dict[str, float]] = {point.step + 1: metrics(point) for point in means(_points(made))}
    for step, losses in valid.items():
        points[step] = {"step": step, **points.get(step, {}), **losses}
    return [points[step] for step in sorted(points)]


def _points(made: Iterable[Made]) -> list[Point]:
    return [point for one in made for point in one.points]


def validations(events: Iterable[Event]) -> dict[int, dict[str, float]]:
    """What was found out on the way, by step."""
    found: dict[int, dict[str, float]] = {}
    for event in events:
        if event.data is not None and "valid_loss" in event.data:
            step = int(event.data["step"])
            losses = {name: value for name, value in event.data.items() if name in COLUMNS}
            found[step] = {**found.get(step, {}), **losses}
    return found


async def put_curve(
    files: Files, disk: Disk, finetune: Finetune, curve: Sequence[Mapping[str, float]]
) -> tuple[str, ...]:
    """As CSV among the member's files; there is one, also when a crash has it written twice."""
    if not curve:
        return ()

    async def once() -> AsyncIterator[bytes]:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for number, point in enumerate(curve):
            writer.writerow(point)
            if number % 1_000 == 999:
                yield text.getvalue().encode()
                text.seek(0)
                text.truncate()
        yield text.getvalue().encode()

    async def put() -> str:
        stored = await files.put(once(), bytes_max=CSV_BYTES_MAX)
        file_id = FileId(f"file-{finetune.id.removeprefix('ftjob-')}-results")
        name = f"{finetune.id}_step_metrics.csv"
        added = await files.add(finetune.member, Purpose.FINE_TUNE_RESULTS, name, stored, file_id=file_id)
        return str(added.id)

    return (await disk.insist(put),)


def origin(entry: ModelEntry) -> str:
    """Where people find the base: its repository, where it comes from one."""
    sources = [file.source for variant in entry.variants for file in variant.files]
    return next((source.repo for source in sources if isinstance(source, HuggingFace)), entry.name)


async def model_of(
    pool: Pool,
    disk: Disk,
    finetune: Finetune,
    entry: ModelEntry,
    adapter: str,
    curve: Sequence[Mapping[str, float]],
    made: Sequence[Made],
) -> TunedModel:
    """The model whose weights are `adapter`; its other files are made. Not yet known to anybody."""
    plan, now, base = finetune.plan, pool.now(), origin(entry)
    assert plan is not None, "it was planned before it was trained"
    text = card(
        finetune,
        plan,
        base=base,
        licence=entry.licence,
        pool=pool.settings.pool_name,
        curve=curve,
        made=made,
        ended_at=now,
    )
    return await _model(pool.training_store, disk, finetune, base, finetune.result, adapter, text, now)


async def checkpoint_models(
    pool: Pool, disk: Disk, finetune: Finetune, entry: ModelEntry, listed: Iterable[Checkpoint]
) -> list[TunedModel]:
    """Those of its checkpoints, which may be asked under names of their own."""
    base, store, found = origin(entry), pool.training_store, []
    for one in listed:
        name = checkpoint_name(finetune, one)
        text = checkpoint_card(finetune, one, base, entry.licence)
        try:
            model = await _model(store, disk, finetune, base, name, one.sha256, text, one.at)
        except NoSuchArtifact:
            log.warning("a checkpoint is gone", action="checkpoint_gone", model=name)
        else:
            found.append(model)
    return found


def checkpoint_name(finetune: Finetune, checkpoint: Checkpoint) -> str:
    """No suffix of a member has a dot."""
    return f"{finetune.result}.step-{checkpoint.step}"


async def _model(
    store: TrainingStore,
    disk: Disk,
    finetune: Finetune,
    base: str,
    name: str,
    adapter: str,
    text: str,
    at: float,
) -> TunedModel:
    plan = finetune.plan
    assert plan is not None, "it was planned before it was trained"
    data = lora.config_json(rank=plan.rank, alpha=plan.alpha, targets=plan.targets, base=base)
    return TunedModel(
        name=name,
        base=finetune.model,
        member=finetune.member,
        finetune=finetune.id,
        created_at=at,
        weights=Kept(lora.WEIGHTS_NAME, adapter, store.artifacts.size(adapter)),
        config=await _kept(store, disk, lora.CONFIG_NAME, data),
        card=await _kept(store, disk, CARD_NAME, text.encode()),
    )


async def _kept(store: TrainingStore, disk: Disk, name: str, data: bytes) -> Kept:
    """What is there already is not written again: at a start, there are many of these."""
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        store.path(sha256)
    except NoSuchArtifact:
        await disk.insist(lambda: store.put(data))
    return Kept(name, sha256, len(data))


async def all_events(store: Store, finetune_id: str) -> list[Event]:
    """In their order."""
    found: list[Event] = []
    while page := await store.finetune_events(
        finetune_id, limit=1_000, after=found[-1].number if found else 0
    ):
        found += page
    return found
