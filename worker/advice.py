"""What follows from a machine: where models run and how exactly, which engine, and which models fit.

Pure: the same answers for a recorded machine as on that machine.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from potluck.catalogue import ModelEntry
from worker.machine import Card, Machine
from worker.models import BRIDGE, EMULATOR, NEEDS, TRAINER_NEEDS

CARD_FIRST: Final = "torch"  # the llama.cpp of the published wheels runs on the processor


@dataclass(frozen=True, slots=True)
class Room:
    """The most that one model may take, and where it then lies. `device` as torch says: cuda, mps, cpu."""

    bytes: int
    where: str
    device: str


@dataclass(frozen=True, slots=True)
class Fit:
    """The least that a model needs with an engine that is here; `engine` is empty where none can run it."""

    model: str
    engine: str
    needs_bytes: int
    fits: bool


def engines(machine: Machine) -> tuple[str, ...]:
    """Those whose libraries can be imported, in order of preference."""
    order = sorted(NEEDS, key=lambda engine: engine != CARD_FIRST) if card(machine) else list(NEEDS)
    return tuple(engine for engine in order if all(_imports(machine, module) for module in NEEDS[engine]))


def trains(machine: Machine) -> bool:
    """Whether the trainer's libraries can be imported."""
    return all(_imports(machine, module) for module in TRAINER_NEEDS)


def _imports(machine: Machine, module: str) -> bool:
    library = machine.libraries.get(module)
    return library is not None and not library.error


def card(machine: Machine) -> Card | None:
    """The one that models are loaded on: the largest that torch can use."""
    usable = [card for card in machine.cards if not unusable(machine, card)]
    return max(usable, key=lambda card: card.memory_bytes, default=None)


def unusable(machine: Machine, card: Card) -> str:
    """Why torch cannot compute on this card, in words with what to do; empty if it can."""
    torch = machine.torch
    if card.fault:
        return f"it does not answer ({card.fault}): restart the machine, and look at its seat and power cable"
    if not _imports(machine, "torch"):
        return "the engine torch is not installed or cannot be imported"
    if torch is None:
        return ""  # not asked: what NVML sees is believed
    built = {"cuda": torch.cuda, "rocm": torch.hip, "mps": torch.mps}
    if not built.get(card.backend):
        return (
            f"the installed torch is built without {card.backend}: install the build for it"
            " (pytorch.org/get-started)"
        )
    if card.backend == "cuda" and _newer(torch.cuda, machine.driver_cuda):
        return (
            f"torch is built for CUDA {torch.cuda}, and the driver {card.driver} knows only"
            f" {machine.driver_cuda}: update the driver"
        )
    if card.backend != "mps" and not torch.available:
        return f"torch does not start it: {torch.why or 'no reason given'}"
    if card.capability and torch.architectures and not supported(card.capability, torch.architectures):
        return (
            f"its compute capability {card.capability} is not among those that this torch has kernels for"
            f" ({', '.join(torch.architectures)}): install an older torch, or use the engine llamacpp"
        )
    return ""


def supported(capability: str, architectures: Iterable[str]) -> bool:
    """Whether kernels run on a card: those of the same generation and not newer, or PTX that is not newer.

    CUDA programming guide, "Binary compatibility" and "PTX compatibility".
    """
    major, minor = (int(part) for part in capability.split("."))
    for architecture in architectures:
        kind, _, digits = architecture.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdecimal():
            continue
        built = (int(digits[:-1]), int(digits[-1]))
        if kind == "sm" and built[0] == major and built[1] <= minor:
            return True
        if kind == "compute" and built <= (major, minor):
            return True
    return False


def _newer(built: str, driver: str) -> bool:
    """A driver runs what was built for its generation of CUDA ("minor version compatibility") and older."""
    return bool(built and driver) and int(built.partition(".")[0]) > int(driver.partition(".")[0])


def room(machine: Machine, engine: str = CARD_FIRST) -> Room:
    """With torch the card if there is one that it can use, else the memory that is free.

    llama.cpp splits a model between the two, where it is built for a card.
    """
    found = card(machine) if engine == CARD_FIRST else _card_of_llamacpp(machine, engine)
    memory = Room(machine.memory_free_bytes, "memory", "cpu")
    if found is None or (engine != CARD_FIRST and found.memory_bytes <= machine.memory_free_bytes):
        return memory
    if found.backend == "mps":  # it is the same memory
        return Room(min(found.memory_bytes, machine.memory_free_bytes), found.name, "mps")
    return Room(found.memory_bytes, found.name, "cuda")


def _card_of_llamacpp(machine: Machine, engine: str) -> Card | None:
    library = machine.libraries.get("xllamacpp")
    if engine != "llamacpp" or library is None:
        return None
    return max(library.cards, key=lambda card: card.memory_bytes, default=None)


def dtype(machine: Machine) -> str:
    """In which torch computes here; the rule of worker.engines.weights, which a test compares."""
    device = room(machine).device
    bfloat16 = machine.torch is not None and machine.torch.bfloat16
    return {"cpu": "float32", "mps": "float16", "cuda": "bfloat16" if bfloat16 else "float16"}[device]


def fits(machine: Machine, entries: Iterable[ModelEntry]) -> list[Fit]:
    """For each model the first engine by preference that it fits with, else the one that comes closest."""
    here = [engine for engine in engines(machine) if engine not in (EMULATOR, BRIDGE)]
    found = []
    for entry in entries:
        ways = [
            Fit(entry.name, engine, variant.memory_bytes, variant.memory_bytes <= room(machine, engine).bytes)
            for engine in here
            for variant in entry.variants
            if engine in variant.engines
        ]
        least = min(ways, key=lambda way: way.needs_bytes, default=Fit(entry.name, "", 0, False))
        found.append(next((way for way in ways if way.fits), least))
    return found
