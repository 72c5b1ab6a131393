"""One attempt at a piece of a fine-tune, from its files to its files, with a model that is loaded."""

import ctypes
import sys
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from potluck.v1 import engine_pb2, work_pb2
from worker.engines.weights import Loaded
from worker.training import plan
from worker.training.adapter import Adapter
from worker.training.head import chunk_bytes
from worker.training.loop import Shell, Training
from worker.training.memory import Cost, Room, free_bytes
from worker.training.passes import Passes
from worker.training.peers import Alone, Peers
from worker.training.precision import LossScale, precision
from worker.training.reading import Reader

_VECTORS: Final = 4  # of the adapter's size, in float32: factors, gradient, two moments


def train(
    loaded: Loaded,
    work: work_pb2.TrainingWork,
    files: engine_pb2.TrainingFiles,
    shell: Shell,
    *,
    cap_bytes: int = 0,
    room: Room | None = None,
    peers: Peers | None = None,
) -> work_pb2.Trained:
    """`cap_bytes`: the owner's, 0: none. `room`: instead of what is measured. `peers`: who does it as well.

    Raises EngineError, StoppedError, OSError.
    """
    plan.check(work, loaded.context_tokens)
    try:
        return _train(loaded, work, files, shell, cap_bytes, room, peers or Alone())
    finally:
        give_back()


def _train(
    loaded: Loaded,
    work: work_pb2.TrainingWork,
    files: engine_pb2.TrainingFiles,
    shell: Shell,
    cap_bytes: int,
    room: Room | None,
    peers: Peers,
) -> work_pb2.Trained:
    reader = reader_of(loaded, work.plan.sequence_tokens)
    exactly = precision(loaded.device.dtype)
    adapter = Adapter(loaded.model, work.plan.lora, Path(files.adapter))
    try:
        passes = Passes(loaded.model, adapter, work.plan, exactly)
        training = Training(
            work,
            files,
            passes=passes,
            adapter=adapter,
            reader=reader,
            room=room or room_of(loaded, passes, adapter, cap_bytes),
            scale=LossScale() if exactly.scaled else None,
            shell=shell,
            peers=peers,
        )
        return training.run()
    finally:
        adapter.remove()


def reader_of(loaded: Loaded, tokens_max: int) -> Reader:
    return Reader(loaded.text, loaded.vocabulary.end_ids, tokens_max, loaded.model.config.vocab_size)


def room_of(loaded: Loaded, passes: Passes, adapter: Adapter, cap_bytes: int) -> Room:
    config, device = loaded.model.config, loaded.device
    give_back()
    cost = Cost.of(
        device.name,
        kept=passes.kept_bytes(),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        item_bytes=loaded.model.dtype.itemsize,
    )
    free = free_bytes(
        device.name,
        cap=cap_bytes,
        used=device.used_bytes(),
        device_free=_free_bytes(device.name),
        fixed=_VECTORS * 4 * adapter.parameters + chunk_bytes(device.name),
    )
    return Room.of(cost, free, device.name)


def give_back() -> None:
    """glibc keeps what was freed between what is still used, unless it is asked; others have no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _free_bytes(device: str) -> int:
    """Of the card's memory, or of the machine's."""
    if device != "cuda":
        return int(psutil.virtual_memory().available)
    free: Any = torch.cuda.mem_get_info()[0]
    return int(free)
