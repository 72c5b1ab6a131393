"""One engine from its load to its end, whoever brings its commands: a pipe (`__main__`) or an actor."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from potluck import collector
from potluck.v1 import engine_pb2
from worker.engines import engine

BRIDGE: Final = "openai"


class Runner:
    """All methods on the loop's thread; `emit` may be called on any. `die` ends the process at once."""

    def __init__(self, emit: engine.Emit, die: Callable[[], None]) -> None:
        self._emit = emit
        self._die = die
        self._engine: engine.Engine | None = None

    async def load(self, load: engine_pb2.Load) -> bool:
        """Says Loaded, or LoadFailed and gives False."""
        try:
            running = create(load.engine, self._emit, self._die)
            loaded = await running.load(load)
        except Exception as error:  # the border of the process: every failure to load is reported
            failure = error if isinstance(error, engine.EngineError) else _unexpected(error, "load_failed")
            load_failed = engine_pb2.LoadFailed(failure=failure.failure)
            self._emit(engine_pb2.EngineEvent(load_failed=load_failed))
            return False
        self._engine = running
        collector.freeze()
        self._emit(engine_pb2.EngineEvent(loaded=loaded))
        return True

    def handle(self, command: engine_pb2.EngineCommand) -> bool:
        """A Start or Stop to the loaded engine. False: it was a Shutdown."""
        assert self._engine is not None
        if command.HasField("start"):
            try:
                self._engine.start(command.start)
            except Exception as error:  # one attempt's failure must not end the others
                failure = error if isinstance(error, engine.EngineError) else _unexpected(error, "internal")
                self._emit(engine.failed(command.start.attempt, failure))
        elif command.HasField("stop"):
            self._engine.stop(command.stop.attempt)
        return not command.HasField("shutdown")

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()


def variables(load: engine_pb2.Load, directory: Path) -> dict[str, str]:
    """What the engine's libraries must find in the environment before they are loaded."""
    found = {engine.RUNTIME_DIR: str(directory)}
    if load.engine == BRIDGE:
        return found  # the rest would reach the owner's server, which may fetch what it likes
    found |= {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # a worker loads files it has verified and nothing else
        "TQDM_DISABLE": "1",  # bars belong to people, not to a log
    }
    if load.threads:
        found["OMP_NUM_THREADS"] = str(load.threads)
    return found


def cards(load: engine_pb2.Load) -> dict[str, str]:
    """What hides the cards that the owner keeps: CUDA's and ROCm's variables, in NVML's order."""
    if not load.gpus:
        return {}
    listed = ",".join(map(str, load.gpus))
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": listed,
        "HIP_VISIBLE_DEVICES": listed,
    }


def create(name: str, emit: engine.Emit, die: Callable[[], None]) -> engine.Engine:
    """The engine of that name. Its libraries are loaded only now. Raises EngineError."""
    match name:
        case "emulator":
            from worker.engines.emulator import Emulator

            return Emulator(emit, die)
        case "llamacpp":
            from worker.engines.llamacpp import LlamaCpp

            return LlamaCpp(emit)
        case "torch":
            from worker.engines.torch import Torch

            return Torch(emit)
        case "trainer":
            from worker.engines.trainer import Trainer

            return Trainer(emit)
        case "openai":
            from worker.engines.openai import OpenAI

            return OpenAI(emit, die)
        case _:
            raise engine.EngineError(
                "unknown_engine", f"this worker has no engine named {name!r}: update it or choose another"
            )


def _unexpected(error: Exception, code: str) -> engine.EngineError:
    """Where it happened goes to the log; what it said does not, since it may quote a prompt."""
    for place in traceback.extract_tb(error.__traceback__):
        sys.stderr.write(f"engine: {type(error).__name__} at {place.filename}:{place.lineno}\n")
    return engine.EngineError(code, f"the engine failed with {type(error).__name__}; its log says where")
