"""What an engine is told when it is to load a model."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from potluck.v1 import engine_pb2
from worker.messages import FINETUNE, Role
from worker.models import BRIDGE, EMULATOR, Choice, load_s_max, options_of
from worker.settings import Settings

SLOTS_GUESSED: Final = {"llamacpp": 4, "torch": 8, BRIDGE: 8, EMULATOR: 32}  # until the engine says


def load_of(
    choice: Choice,
    settings: Settings,
    *,
    paths: Iterable[Path],
    threads: int,
    memory_bytes_max: int,
    cache_dir: Path,
) -> engine_pb2.Load:
    """`memory_bytes_max`: 0 for as much as it likes."""
    return engine_pb2.Load(
        engine=choice.engine,
        model=choice.entry.name,
        paths=[str(path) for path in paths],
        threads=threads,
        slots=1 if choice.role is Role.TRAIN else settings.slots,
        context_tokens=settings.context_tokens,
        options=options_of(choice, settings),
        cache_dir=str(cache_dir),
        kinds=[FINETUNE] if choice.role is Role.TRAIN else [str(kind) for kind in choice.entry.kinds],
        memory_bytes_max=memory_bytes_max,
        gpus=settings.caps.gpus,
        load_s_max=load_s_max(choice, settings),
    )


def slots_of(choice: Choice, settings: Settings, loaded: engine_pb2.Loaded) -> int:
    """Attempts at once, as far as it is known."""
    if choice.role is Role.TRAIN:
        return 1
    return loaded.slots or settings.slots or SLOTS_GUESSED.get(choice.engine, 1)
