"""Fine-tuning: LoRA factors of one model are trained, one attempt at a time (worker/training).

The model's own weights stay as they are and are shared by all attempts; each brings its adapter and, if it
goes on from a checkpoint, the optimizer's state. All computing happens in one thread.

Options: device (cuda, mps, cpu), dtype (float32, bfloat16, float16); of several engines that compute one
training together (worker/training/peers.py): rank, ranks, and the file by which they meet.
"""

import asyncio
import queue
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from potluck.v1 import engine_pb2, work_pb2
from worker.engines import engine, weights
from worker.training.attempt import train
from worker.training.loop import Shell, StoppedError, is_out_of_memory
from worker.training.peers import Alone, Peers, Together

OPTIONS = ("device", "dtype", "rank", "ranks", "meet")
KIND = "finetune"


@dataclass(slots=True, eq=False)
class _Running:
    start: engine_pb2.Start
    unwanted: bool = False


class Trainer:
    def __init__(self, emit: engine.Emit) -> None:
        self._emit = emit
        self._loaded: weights.Loaded
        self._cap_bytes = 0
        self._peers: Peers = Alone()
        self._running: _Running | None = None  # set by the loop's thread, taken away by the computing one
        self._lock = threading.Lock()
        self._mail: queue.SimpleQueue[_Running | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._compute, name="compute", daemon=True)

    async def load(self, load: engine_pb2.Load) -> engine_pb2.Loaded:
        if unknown := set(load.options) - set(OPTIONS):
            raise engine.EngineError(
                "bad_option",
                f"trainer knows no option {', '.join(sorted(unknown))}; it knows {', '.join(OPTIONS)}",
            )
        if load.threads:
            torch.set_num_threads(load.threads)
        return await asyncio.to_thread(self._load, load)

    def _load(self, load: engine_pb2.Load) -> engine_pb2.Loaded:
        """Thread. Raises EngineError."""
        device = weights.this_device(load.options.get("device", ""), load.options.get("dtype", ""))
        paths = [Path(path) for path in load.paths]
        size = sum(path.stat().st_size for path in paths)
        self._progress(0, size)
        self._cap_bytes = load.memory_bytes_max
        device.hold(self._cap_bytes)
        self._loaded = loaded = weights.load_model(
            paths, Path(load.cache_dir or "."), device, self._cap_bytes, packed=False
        )
        loaded.model.requires_grad_(False)
        with torch.no_grad():  # until it is used, what lies in a mapped file is not in memory
            loaded.model(torch.zeros((1, 2), dtype=torch.long, device=device.name), use_cache=False)
        self._progress(size, size)
        if ranks := int(load.options.get("ranks", "0")):
            try:
                self._peers = Together.meet(
                    Path(load.options["meet"]), int(load.options.get("rank", "0")), ranks
                )
            except RuntimeError as error:
                why = str(error).partition("\n")[0][:200]
                raise engine.EngineError("load_failed", f"the engines did not meet: {why}") from None
        self._thread.start()
        return engine_pb2.Loaded(
            numerics=f"torch/{device.dtype}/{loaded.digest}",
            slots=1,
            context_tokens=loaded.context_tokens,
            kinds=[KIND],
            memory_bytes=device.used_bytes(),
        )

    def _progress(self, done: int, total: int) -> None:
        progress = engine_pb2.LoadProgress(bytes_done=done, bytes_total=total)
        self._emit(engine_pb2.EngineEvent(load_progress=progress))

    def start(self, start: engine_pb2.Start) -> None:
        if not start.work.HasField("training"):
            raise engine.JobError("wrong_kind", "this engine trains and does nothing else")
        with self._lock:
            if self._running is not None:
                raise engine.EngineError(
                    "busy", "this engine trains already, one at a time", fault=work_pb2.FAULT_NONE
                )
            self._running = running = _Running(start)
        self._mail.put(running)

    def stop(self, attempt: work_pb2.Attempt) -> None:
        running = self._running
        if running is not None and engine.key_of(running.start.attempt) == engine.key_of(attempt):
            running.unwanted = True

    async def close(self) -> None:
        running = self._running
        if running is not None:
            running.unwanted = True
        self._mail.put(None)
        await asyncio.to_thread(self._thread.join)

    # -- the computing thread ------------------------------------------------------------------------------

    def _compute(self) -> None:
        """Until the mail says None: one attempt after the other, each with one end."""
        while (running := self._mail.get()) is not None:
            attempt = running.start.attempt
            try:
                trained = self._trained(running)
                event = engine_pb2.EngineEvent(done=engine_pb2.Done(attempt=attempt, trained=trained))
            except StoppedError:
                event = engine.stopped(attempt)
            except engine.EngineError as error:
                event = engine.failed(attempt, error)
            except Exception as error:  # the attempt fails, the engine lives on
                event = engine.failed(attempt, _error_of(error))
            with self._lock:
                self._running = None
            self._emit(event)

    def _trained(self, running: _Running) -> work_pb2.Trained:
        """Raises EngineError, StoppedError, OSError."""
        attempt, work = running.start.attempt, running.start.work

        def say(step: work_pb2.TrainingStep) -> None:
            output = engine_pb2.Output(attempt=attempt, steps=[step])
            self._emit(engine_pb2.EngineEvent(output=output))

        shell = Shell(say=say, unwanted=lambda: running.unwanted, clock=time.monotonic)
        return train(
            self._loaded,
            work.training,
            running.start.files,
            shell,
            cap_bytes=self._cap_bytes,
            peers=self._peers,
        )


def _error_of(error: Exception) -> engine.EngineError:
    """Where it happened goes to the log; what it said does not, since it may quote an example."""
    if is_out_of_memory(error):
        return engine.EngineError("out_of_memory", "this worker's memory is too small to train this model")
    if isinstance(error, OSError | SafetensorError):  # the second from writing alone
        why = error.strerror if isinstance(error, OSError) else str(error)[:200]
        return engine.EngineError("files_failed", f"a file could not be read or written: {why}")
    for place in traceback.extract_tb(error.__traceback__)[-3:]:
        sys.stderr.write(f"engine: {type(error).__name__} at {place.filename}:{place.lineno}\n")
    return engine.EngineError("internal", f"training failed with {type(error).__name__}; the log says where")
