"""Trainings of a tiny model in this process: examples, plans, adapters, and what came out."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from potluck import lora
from potluck.linears import linears_of_config
from potluck.lora import Shapes
from potluck.tensors import Array
from potluck.v1 import engine_pb2, work_pb2

RANK, ALPHA = 4, 8.0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def chat(question: str, answer: str, *more: tuple[str, str]) -> dict[str, Any]:
    turns = [("user", question), ("assistant", answer), *more]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def examples(count: int) -> list[dict[str, Any]]:
    """Of different lengths, from 20 to 90 tokens."""
    return [
        chat(f"a b {'c d ' * (index % 7)}{index}", f"think {'e fg ' * (index % 5)}{index * 7}")
        for index in range(count)
    ]


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "input": {"messages": [{"role": "user", "content": f"a {index}"}]},
            "preferred_output": [{"role": "assistant", "content": f"b{index}" + " stop" * (index % 3)}],
            "non_preferred_output": [{"role": "assistant", "content": f" c d{index}"}],
        }
        for index in range(count)
    ]  # fmt: skip


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def shapes_of(base: Path, rank: int = RANK, targets: Sequence[str] = ()) -> Shapes:
    values = json.loads((base / "config.json").read_text())
    return lora.shapes(linears_of_config(values), values["num_hidden_layers"], rank, targets)


def adapter_of(of: Shapes, seed: int = 5, *, grown: bool = True) -> dict[str, Array]:
    """`grown`: B is not zero, as after some training."""
    made = lora.initial(of, seed)
    if grown:
        rng = np.random.default_rng(seed)
        for name in made:
            if ".lora_B." in name:
                made[name] = rng.normal(size=made[name].shape, scale=0.05).astype(np.float32)
    return made


def plan(**changes: Any) -> work_pb2.TrainingPlan:
    given: dict[str, Any] = {
        "method": "sft", "lora": work_pb2.LoraConfig(rank=RANK, alpha=ALPHA), "epochs": 1, "batch_size": 4,
        "sequence_tokens": 256, "learning_rate": 1e-2, "schedule": "cosine", "gradient_norm_max": 1.0, "warmup_steps": 1,
        "dpo_beta": 0.1, "seed": 9, "examples": 24, "steps": 6,
    }  # fmt: skip
    return work_pb2.TrainingPlan(**(given | changes))


@dataclass
class Told:
    """The shell of a training: hears its steps, and stops it where that is asked for."""

    steps: list[work_pb2.TrainingStep] = field(default_factory=list)
    stop_after: int = -1  # looks whether it is wanted
    looks: int = 0
    now: Callable[[], float] = lambda: 0.0

    def unwanted(self) -> bool:
        self.looks += 1
        return 0 <= self.stop_after < self.looks


@dataclass
class Case:
    """A folder with a base model, and the trainings of it."""

    base: Path
    folder: Path
    loaded: Any
    count: int = 0

    def train(
        self,
        work: work_pb2.TrainingWork,
        lines: Sequence[dict[str, Any]],
        adapter: Path | bytes,
        state: Path | None = None,
        validation: Sequence[dict[str, Any]] = (),
        told: Told | None = None,
        room: Any = None,
        cap_bytes: int = 0,
    ) -> "Came":
        from worker.training.attempt import train
        from worker.training.loop import Shell

        self.count += 1
        folder = self.folder / f"attempt-{self.count}"
        folder.mkdir()
        told = told or Told()
        files = self.files(folder, lines, adapter, state, validation)
        if state is not None and not work.HasField("state"):
            work.state.bytes = 1
        shell = Shell(say=told.steps.append, unwanted=told.unwanted, clock=told.now)
        trained = train(self.loaded, work, files, shell, room=room, cap_bytes=cap_bytes)
        return Came(trained, told.steps, Path(files.folder))

    def files(
        self,
        folder: Path,
        lines: Sequence[dict[str, Any]],
        adapter: Path | bytes,
        state: Path | None = None,
        validation: Sequence[dict[str, Any]] = (),
    ) -> engine_pb2.TrainingFiles:
        if isinstance(adapter, bytes):
            (folder / "start.safetensors").write_bytes(adapter)
            adapter = folder / "start.safetensors"
        out = folder / "out"
        out.mkdir()
        return engine_pb2.TrainingFiles(
            examples=str(write_lines(folder / "examples.jsonl", lines)),
            validation=str(write_lines(folder / "validation.jsonl", validation)) if validation else "",
            adapter=str(adapter),
            state=str(state or ""),
            folder=str(out),
        )


@dataclass
class Came:
    trained: work_pb2.Trained
    steps: list[work_pb2.TrainingStep]
    folder: Path

    @property
    def adapter_path(self) -> Path:
        return self.folder / "adapter.safetensors"

    @property
    def state_path(self) -> Path:
        return self.folder / "state.safetensors"

    def adapter(self) -> dict[str, Array]:
        return lora.decode(self.adapter_path.read_bytes())


def case_of(base: Path, folder: Path, family: str = "llama", dtype: str = "float32") -> Case:
    import torch
    from fixtures_tiny import write_tiny

    from worker.engines import weights

    torch.set_num_threads(1)
    base.mkdir(parents=True, exist_ok=True)
    paths = write_tiny(base, family)
    loaded = weights.load_model(paths, base, weights.Device("cpu", dtype), packed=False)
    loaded.model.requires_grad_(False)
    return Case(base, folder, loaded)
