"""Adapters side by side in one batch compute what peft computes for each alone, and the base stays the base."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from fixtures_engine import completion, embedding, hosted, start
from fixtures_tiny import write_tiny
from safetensors.torch import load_file, save_file

from potluck.v1 import engine_pb2, work_pb2
from worker.engines import lora, weights
from worker.engines.batch import Batch, Decoding, Embedding
from worker.engines.engine import EngineError
from worker.engines.pieces import Pieces
from worker.engines.rows import Rows
from worker.engines.sampling import Sampler
from worker.engines.stops import Stops

CPU = weights.Device("cpu", "float32")
NEAR = 1e-5
SCALE = 30  # logits of these models
PLAIN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LATENT = r".*self_attn\.(q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj)"
PROMPT = [256 + (3 * index) % 20 for index in range(40)]


def plain_of(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def write_adapter(base: Path, folder: Path, seed: int, targets: Any, rank: int = 4, **more: Any) -> Any:
    """As peft writes it after a training that changed everything; returns peft's model."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=rank, lora_alpha=3 * rank, target_modules=targets, task_type="CAUSAL_LM", **more
    )
    with warnings.catch_warnings(
        action="ignore", category=FutureWarning
    ):  # peft asks transformers its old way
        model = peft.get_peft_model(plain_of(base), config).eval()
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(str(folder))
    return model


@dataclass
class Base:
    folder: Path
    loaded: weights.Loaded
    adapters: dict[str, Any]  # peft's models by name

    def named(self, name: str) -> engine_pb2.LoadedAdapter:
        return engine_pb2.LoadedAdapter(name=name, digest=f"digest of {name}", folder=str(self.folder / name))


@pytest.fixture(scope="module", params=["llama", "deepseek_v3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    paths = write_tiny(folder, request.param)
    targets: Any = PLAIN if request.param == "llama" else LATENT
    few: Any = ["q_proj"] if request.param == "llama" else ["q_b_proj"]
    adapters = {
        "one": write_adapter(folder, folder / "one", 1, targets),
        "two": write_adapter(folder, folder / "two", 2, targets, rank=8),
        "few": write_adapter(folder, folder / "few", 3, few, layers_to_transform=[1]),
    }
    return Base(folder, weights.load_model(paths, folder, CPU), adapters)


class Row:
    def __init__(self, length: int, adapter: Any) -> None:
        self.prompt, self.adapter = PROMPT[:length], adapter
        self.output: list[int] = []
        self.logits: list[Any] = []

    def member(self) -> Decoding:
        pieces = Pieces(choice=0, stops=Stops(()), tokens_max=99)
        return Decoding(
            self, list(self.prompt), pieces, Sampler(0, 0), len(self.prompt), self.heard, adapter=self.adapter
        )

    def heard(self, member: Decoding, logits: Any) -> bool:
        self.logits.append(logits)
        self.output.append(int(np.argmax(logits)))
        member.ids.append(self.output[-1])
        return len(self.output) < 12


def run(batch: Batch, rows: list[Row]) -> None:
    batch.clock = lambda: 0.0
    for row in rows:
        batch.add([row.member()])
        batch.step()
        batch.chunk_tokens = 16
    while not batch.idle:
        batch.step()


def batch_of(base: Base) -> Batch:
    return Batch(base.loaded.model, Rows(base.loaded.model.config.num_hidden_layers, 256), 16, 16)


def test_a_mixed_batch_is_each_adapter_alone(base: Base) -> None:
    """Rows of three adapters and of none, of unequal lengths, in pieces and in steps."""
    names = ["one", "", "two", "one", "few", "", "two"]
    bare = [Row(5 * (index + 1), None) for index, name in enumerate(names) if not name]
    run(batch_of(base), bare)
    batch = batch_of(base)
    rows = [
        Row(5 * (index + 1), batch.lora.get(base.named(name)) if name else None) for index, name in enumerate(names)
    ]  # fmt: skip
    run(batch, rows)
    plain = plain_of(base.folder)
    for name, row in zip(names, rows, strict=True):
        with torch.inference_mode():
            whole = (base.adapters[name] if name else plain)(torch.tensor([row.prompt + row.output])).logits[
                0
            ]
            base_alone = plain(torch.tensor([row.prompt + row.output])).logits[0].numpy()
        expected = whole.numpy()[len(row.prompt) - 1 : -1]
        scale = max(1.0, np.abs(expected).max())
        assert np.abs(np.stack(row.logits) - expected).max() / scale < NEAR
        changed = np.abs(base_alone[len(row.prompt) - 1 : -1] - expected).max()
        assert changed > 1000 * NEAR if name else changed < NEAR
    for before, after in zip(bare, [row for row in rows if row.adapter is None], strict=True):
        np.testing.assert_allclose(np.stack(before.logits), np.stack(after.logits), atol=1e-5)
        assert before.output == after.output


def test_a_row_without_an_adapter_is_the_same_bit_for_bit(base: Base) -> None:
    """In a batch of one shape, the base's row does not know what its neighbour has."""
    logits = []
    for name in ("", "one"):
        batch = batch_of(base)
        rows = [Row(16, None), Row(16, batch.lora.get(base.named(name)) if name else None)]
        run(batch, rows)
        logits.append([np.stack(row.logits) for row in rows])
    changed = np.abs(logits[0][0] - logits[1][0]).max()
    # Experts compute the tokens of all rows that come to them in one product: there, the last bits may differ.
    assert changed == 0 or (hasattr(base.loaded.model.config, "n_routed_experts") and changed < 1e-6 * SCALE)
    assert (logits[0][1] != logits[1][1]).any()


def test_embeddings_have_their_adapters_too(base: Base) -> None:
    batch = batch_of(base)
    got: dict[str, Any] = {}
    for name in ("one", "two", ""):
        member = Embedding(name, PROMPT[:9], lambda member, vector: got.update({member.owner: vector}))
        member.adapter = batch.lora.get(base.named(name)) if name else None
        batch.add([member])
    while not batch.idle:
        batch.step()
    for name, model in (base.adapters | {"": None}).items():
        if name in got:
            plain = plain_of(base.folder) if model is None else model.base_model.model
            with torch.inference_mode():
                expected = plain.base_model(torch.tensor([PROMPT[:9]])).last_hidden_state[0].mean(0).numpy()
            np.testing.assert_allclose(got[name], expected, atol=1e-4)
    assert len(got) == 3


def test_adapters_keep_to_their_part_of_the_memory(base: Base) -> None:
    """Those that nobody uses leave for another; where all are in use, the next is refused without blame."""
    here = batch_of(base).lora
    sizes = {name: here.get(base.named(name)).size_bytes for name in ("one", "two")}
    for name, size in sizes.items():
        factors = [factor for pair in here.get(base.named(name)).factors.values() for factor in pair]
        assert size == sum(factor.nbytes for factor in factors)
    here = batch_of(base).lora
    here.bytes_max = max(sizes.values())
    here.get(base.named("one"))
    used = here.get(base.named("two"))
    assert here.kept == ("digest of two",)
    with pytest.raises(EngineError, match=r"the adapter one takes \d MB, and adapters may take") as raised:
        here.get(base.named("one"))
    assert (raised.value.code, raised.value.fault) == ("no_room", work_pb2.FAULT_NONE)
    del used
    assert here.get(base.named("one")).size_bytes == sizes["one"]


def test_the_least_recently_used_leaves(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "KEPT_MAX", 2)
    here = batch_of(base).lora
    one = here.get(base.named("one"))
    here.get(base.named("two"))
    assert here.get(base.named("one")) is one, "it is read once"
    here.get(base.named("few"))
    assert here.kept == ("digest of one", "digest of few")
    assert here.get(base.named("one")) is one


def edited(
    base: Base, folder: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]
) -> engine_pb2.LoadedAdapter:
    config = json.loads((base.folder / "one" / "adapter_config.json").read_text())
    tensors = load_file(base.folder / "one" / "adapter_model.safetensors")
    edit(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return engine_pb2.LoadedAdapter(name="odd", digest="odd", folder=str(folder))


A = "base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"
EXPERTS = "base_model.model.model.layers.1.mlp.shared_experts.up_proj.lora_A.weight"
FUSED = "base_model.model.model.layers.1.mlp.experts.lora_A.weight"
ROUTER = "base_model.model.model.layers.1.mlp.gate.lora_A.weight"
BAD: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], None], str]] = {
    "dora": (lambda config, _: config.update(use_dora=True), "no plain LoRA: use_dora"),
    "rslora": (lambda config, _: config.update(use_rslora=True), "use_rslora"),
    "bias": (lambda config, _: config.update(bias="all"), "no plain LoRA: bias"),
    "of tomorrow": (lambda config, _: config.update(tomorrow={"a": 1}), "tomorrow"),
    "another start": (lambda config, _: config.update(init_lora_weights="pissa"), "init_lora_weights"),
    "ranks": (lambda config, _: config.update(rank_pattern={"q_proj": 8}), "no plain LoRA: rank_pattern"),
    "fused": (lambda _, t: t.update({FUSED: t[A]}), "experts and routers cannot"),
    "no lora": (lambda config, _: config.update(peft_type="IA3"), "not one of LoRA"),
    "rank": (lambda config, _: config.update(r=100_000), "from 1 to 256"),
    "rank true": (lambda config, _: config.update(r=True), "from 1 to 256"),
    "alpha": (lambda config, _: config.update(lora_alpha=float("inf")), "lora_alpha"),
    "another rank": (lambda config, _: config.update(r=5), r"a float of \[5, "),
    "dtype": (lambda _, tensors: tensors.update({A: tensors[A].to(torch.float64)}), "F64"),
    "shape": (lambda _, tensors: tensors.update({A: tensors[A][:, :-1].contiguous()}), "a float of"),
    "nan": (lambda _, tensors: tensors[A].fill_(torch.nan), "not all finite"),
    "half": (lambda _, tensors: tensors.pop(A), "lora_A.weight is missing"),
    "nothing": (lambda _, tensors: tensors.clear(), "no weights"),
    "stranger": (lambda _, t: t.update({A.replace("o_proj", "x"): t[A]}), "not in this model"),
    "no weight": (lambda _, tensors: tensors.update(x=tensors[A]), "x is no LoRA weight"),
    "more": (lambda _, tensors: tensors.update({A.replace("_A", "_C"): tensors[A]}), "no LoRA weight"),
    "experts": (lambda _, tensors: tensors.update({EXPERTS: tensors[A]}), "experts and routers cannot"),
    "router": (lambda _, tensors: tensors.update({ROUTER: tensors[A]}), "experts and routers cannot"),
    "head": (lambda _, t: t.update({"base_model.model.lm_head.lora_A.weight": t[A]}), "cannot have one"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_plain_adapter_of_this_base_is_refused_by_name(
    base: Base, case: str, tmp_path: Path
) -> None:
    edit, why = BAD[case]
    here = batch_of(base).lora
    with pytest.raises(EngineError, match=why) as caught:
        here.get(edited(base, tmp_path, edit))
    assert (caught.value.fault, caught.value.code) == (work_pb2.FAULT_JOB, "bad_adapter")
    assert not here.kept


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize(
    "data", [b"", b"[" * 100_000, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", b"{" + b" " * (2 << 20)]
)
def test_a_file_of_rubbish_is_the_jobs_fault(base: Base, name: str, data: bytes, tmp_path: Path) -> None:
    adapter = edited(base, tmp_path, lambda *_: None)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EngineError, match="cannot be served") as caught:
        batch_of(base).lora.get(adapter)
    assert caught.value.fault == work_pb2.FAULT_JOB


def test_a_missing_file_is_the_workers_fault(base: Base, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read: No such file") as caught:
        batch_of(base).lora.get(engine_pb2.LoadedAdapter(name="x", digest="x", folder=str(tmp_path)))
    assert (caught.value.fault, caught.value.code) == (work_pb2.FAULT_WORKER, "adapter_not_there")


async def test_an_engine_process_serves_a_model_with_and_without_its_adapter(base: Base) -> None:
    paths = [str(path) for path in sorted(base.folder.iterdir()) if path.is_file()]
    load = engine_pb2.Load(engine="torch", model="tiny", paths=paths, slots=4, context_tokens=256, threads=1)
    async with hosted(load) as (host, heard):
        for name in ("", "one", "two"):
            work = completion("", max_tokens=12)
            work.completion.prompt_ids.extend(PROMPT)
            command = start(work, f"job {name}")
            if name:
                command.start.adapter.CopyFrom(base.named(name))
            host.send(command)
        wrong = start(embedding("x"), "wrong")
        wrong.start.adapter.CopyFrom(engine_pb2.LoadedAdapter(name="gone", digest="gone", folder="/nowhere"))
        host.send(wrong)
        for name, model in {"": plain_of(base.folder), **base.adapters}.items():
            if name == "few":
                continue
            assert (await heard.ended(f"job {name}")).HasField("done")
            row = PROMPT + heard.ids(f"job {name}")
            with torch.inference_mode():
                best = model(torch.tensor([row])).logits[0].argmax(-1)[len(PROMPT) - 1 : -1].tolist()
            assert heard.ids(f"job {name}") == best
        assert (await heard.ended("wrong")).failed.failure.code == "adapter_not_there"
