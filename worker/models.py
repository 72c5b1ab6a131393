"""Which models this worker serves, with which engine, from which files.

The owner names models (`--models A,B`), or the worker takes the first of the catalogue that fits into this
machine's memory and that one of its engines can run. The emulator is never chosen silently.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from potluck.catalogue import DEFAULT_MODEL, Catalogue, CatalogueError, ModelEntry, Variant
from worker.errors import WorkerConflict
from worker.messages import FINETUNE, Role
from worker.rules import Sharing
from worker.settings import Settings

EMULATOR: Final = "emulator"
BRIDGE: Final = "openai"
TRAINER: Final = "trainer"  # beside the engine that serves a model, never instead of it

# What each engine needs; without a card the first that is here and fits is taken.
NEEDS: Final = {
    "llamacpp": ("xllamacpp",),
    "torch": ("torch", "transformers"),
    BRIDGE: (),
    EMULATOR: (),
}
TRAINER_NEEDS: Final = ("torch", "transformers", "peft")
TRAINED_WITH: Final = "torch"  # the engine whose variants the trainer loads
ADAPTS: Final = "torch"  # the engine that answers with adapters
TRAINER_OPTIONS: Final = frozenset({"device", "dtype"})
TRAINING_BYTES: Final = 1 << 30  # for what it computes on its way, whatever the model

TENANTS: Final = {
    Role.SERVE: "{}",
    Role.TRAIN: "the training of {}",
    Role.ADAPT: "what was tuned from {}",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """One model to serve. `eager`: the owner asked for it by name, so it is loaded at once and stays.

    Whoever trains it, or answers with adapters on it, does so in an engine of its own, loaded on demand.
    """

    entry: ModelEntry
    variant: Variant
    engine: str
    eager: bool
    bridge: str = ""  # its table in worker.toml, where a server of the owner's serves it
    role: Role = Role.SERVE

    @property
    def key(self) -> tuple[str, Role]:
        return self.entry.name, self.role

    @property
    def beside(self) -> bool:
        """Another engine serves the model; this one is loaded on demand, and its files fetched."""
        return self.role is not Role.SERVE

    @property
    def tenant(self) -> str:
        """What it is called among those that share memory."""
        return TENANTS[self.role].format(self.entry.name)


# Whatever forms of the weights the catalogue knows: the server has its own.
_THROUGH_A_BRIDGE: Final = Variant(format="none", engines=(BRIDGE,), memory_bytes=0)


def catalogue_from(data: bytes) -> tuple[Catalogue, list[str]]:
    """The catalogue of a welcome, and a sentence for each entry left out. Raises WorkerConflict."""
    try:
        return Catalogue.from_wire(data)
    except CatalogueError as error:
        raise WorkerConflict(
            f"the pool's catalogue cannot be read ({error}): update this worker with"
            " `pip install --upgrade 'potluck[worker]'`."
        ) from None


def choose(
    catalogue: Catalogue, settings: Settings, *, engines: Collection[str], memory_bytes: Mapping[str, int]
) -> list[Choice]:
    """`memory_bytes`: the most that a model may take, for each engine.

    Raises WorkerConflict with a sentence if what the owner wants cannot be.
    """
    wanted = _engines_wanted(settings, engines)
    refused = {name.lower() for name in settings.sharing.models_refused}
    if both := sorted(refused.intersection(name.lower() for name in settings.models)):
        raise WorkerConflict(f"`models` and `sharing.models_refused` both name {both[0]}.")
    bridged = tuple(settings.bridge) if settings.engine in ("", BRIDGE) else ()
    if names := settings.models or bridged:
        return [_named(catalogue, settings, name, wanted, memory_bytes) for name in dict.fromkeys(names)]
    for entry in sorted(catalogue.entries, key=lambda entry: entry.name != DEFAULT_MODEL):
        found = None if entry.name.lower() in refused else _variant(entry, wanted, memory_bytes)
        if found is not None:
            return [Choice(entry, *found, eager=False)]
    raise WorkerConflict(
        f"no model of the pool fits into the {_most(memory_bytes, wanted)} that this machine has free with"
        f" the engines {', '.join(wanted) or '(none)'}. Free some memory, or name models with --models."
    )


def _engines_wanted(settings: Settings, here: Collection[str]) -> list[str]:
    if not settings.engine:
        return [engine for engine in here if engine not in (EMULATOR, BRIDGE)]
    if settings.engine not in NEEDS:
        known = ", ".join(NEEDS)
        raise WorkerConflict(f"there is no engine `{settings.engine}`. Known are {known}.")
    if settings.engine == BRIDGE and not settings.bridge:
        raise WorkerConflict(
            "the engine openai is a bridge to a server of yours: name it in worker.toml, as"
            ' [bridge."MODEL"] with url = "http://127.0.0.1:8000".'
        )
    if settings.engine not in here:
        raise WorkerConflict(
            f"the engine {settings.engine} is not installed on this machine: pip install 'potluck[worker]'"
        )
    return [settings.engine]


def trainer_of(
    choice: Choice, sharing: Sharing, *, here: bool, memory_bytes: int, number_bytes: int
) -> Choice | None:
    """What trains this model beside the engine that serves it; None: nothing here can, or its owner does not
    want it.

    `here`: the trainer's libraries are. `memory_bytes`: the most that it may take; `number_bytes`: of each of
    the model's numbers, as they are held for it. A bridge leads to a server that is not ours to train on.
    """
    wanted = not sharing.kinds or FINETUNE in sharing.kinds
    if not wanted or choice.engine == BRIDGE or not _generates(choice):
        return None
    if choice.engine == EMULATOR:
        return replace(choice, eager=False, role=Role.TRAIN)
    needed = training_bytes(choice.entry, number_bytes)
    ways = [variant for variant in choice.entry.variants if TRAINED_WITH in variant.engines]
    if not here or not ways or needed > memory_bytes:
        return None
    chosen = choice.variant if choice.variant in ways else ways[0]
    variant = chosen.model_copy(update={"memory_bytes": needed})
    return Choice(choice.entry, variant, TRAINER, eager=False, role=Role.TRAIN)


def adapting_of(choice: Choice, *, here: bool, memory_bytes: int) -> Choice | None:
    """What answers with adapters on this model beside the engine that serves it; None: that one does itself,
    or nothing here can.

    `here`: torch is. `memory_bytes`: the most that it may take. A bridge leads to a server that knows no
    adapters of ours.
    """
    if not here or choice.engine in (ADAPTS, BRIDGE, EMULATOR) or not _generates(choice):
        return None
    found = _variant(choice.entry, [ADAPTS], {ADAPTS: memory_bytes})
    return None if found is None else Choice(choice.entry, *found, eager=False, role=Role.ADAPT)


def _generates(choice: Choice) -> bool:
    return not {"chat", "completion"}.isdisjoint(choice.entry.kinds)


def training_bytes(entry: ModelEntry, number_bytes: int) -> int:
    """A quarter beside the weights for gradients and moments of the adapter and for activations that grow
    with the model, and what any training takes.
    """
    return entry.parameters * number_bytes * 5 // 4 + TRAINING_BYTES


def options_of(choice: Choice, settings: Settings) -> dict[str, str]:
    """What the engine of this model is told: the owner's options, or the bridge to the owner's server. Of
    those that were written for torch, a trainer knows some; beside another engine, torch gets none.
    """
    if choice.role is Role.ADAPT:
        return {}
    if choice.engine == TRAINER:
        meant = settings.engine_options if settings.engine == TRAINED_WITH else {}
        return {name: value for name, value in meant.items() if name in TRAINER_OPTIONS}
    return settings.bridge[choice.bridge].options() if choice.bridge else settings.engine_options


def load_s_max(choice: Choice, settings: Settings) -> float:
    """How long its engine may take to load; 0: as long as any."""
    return settings.bridge[choice.bridge].load_s_max if choice.bridge else 0.0


def _named(
    catalogue: Catalogue, settings: Settings, name: str, engines: list[str], memory_bytes: Mapping[str, int]
) -> Choice:
    entry = catalogue.get(name)
    if entry is None:
        close = ", ".join(catalogue.closest(name)[:3])
        hint = f" Close to it: {close}." if close else ""
        raise WorkerConflict(f"the pool has no model `{name}`.{hint} `potluck models` lists all.")
    bridge = next((key for key in settings.bridge if catalogue.get(key) is entry), "")
    if bridge and settings.engine in ("", BRIDGE):
        return Choice(entry, _THROUGH_A_BRIDGE, BRIDGE, eager=True, bridge=bridge)
    if entry.engines == (BRIDGE,):
        raise WorkerConflict(
            f"{entry.name} is served through a bridge only: name your server in worker.toml, as"
            f' [bridge."{entry.name}"] with url = "http://127.0.0.1:8000".'
        )
    found = _variant(entry, engines, memory_bytes)
    if found is not None:
        return Choice(entry, *found, eager=True)
    runnable = [variant for variant in entry.variants if set(variant.engines) & set(engines)]
    if runnable:
        least = min(variant.memory_bytes for variant in runnable)
        raise WorkerConflict(
            f"{entry.name} needs {_gigabytes(least)} of memory, and {_most(memory_bytes, engines)} are free"
            " here."
        )
    known = sorted({engine for variant in entry.variants for engine in variant.engines})
    raise WorkerConflict(
        f"{entry.name} runs with the engine {' or '.join(known)}; here it could be"
        f" {' or '.join(engines) or 'none'}. Choose with --engine."
    )


def _variant(
    entry: ModelEntry, engines: list[str], memory_bytes: Mapping[str, int]
) -> tuple[Variant, str] | None:
    """The first engine by preference that has a variant which fits."""
    for engine in engines:
        for variant in entry.variants:
            if engine in variant.engines and variant.memory_bytes <= memory_bytes[engine]:
                return variant, engine
    return None


def _most(memory_bytes: Mapping[str, int], engines: Collection[str]) -> str:
    return _gigabytes(max((memory_bytes[engine] for engine in engines), default=0))


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
