"""Examples that share a row, or a step's micro-batches, teach what each teaches alone: against plain peft."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from fixtures_tiny import FAMILIES
from fixtures_training import ALPHA, RANK, Case, adapter_of, case_of, plan, shapes_of

from potluck import lora
from potluck.v1 import work_pb2
from worker.training.adapter import Adapter
from worker.training.head import CHUNK_BYTES_MAX
from worker.training.losses import Sums
from worker.training.packing import Tokens, Unit
from worker.training.passes import Passes
from worker.training.precision import Precision

LENGTHS = (40, 7, 25, 2)  # longer than the windows of the families that have one, and shorter
Gradients = dict[str, Any]


def units(lengths: Sequence[int] = LENGTHS) -> list[Unit]:
    """Sequences whose second half is learned."""
    rng = np.random.default_rng(4)
    return [
        (Tokens(tuple(map(int, rng.integers(256, 276, size))), tuple(range(max(1, size // 2), size))),)
        for size in lengths
    ]


def pairs() -> list[Unit]:
    first, second, third, fourth = units()
    return [(*first, *second), (*third, *fourth)]


class Ours:
    def __init__(self, case: Case, method: str = "sft", precision: Precision | None = None) -> None:
        (case.folder / "adapter.safetensors").write_bytes(lora.encode(adapter_of(shapes_of(case.base))))
        config = work_pb2.LoraConfig(rank=RANK, alpha=ALPHA)
        self.adapter = Adapter(case.loaded.model, config, case.folder / "adapter.safetensors")
        self.passes = Passes(case.loaded.model, self.adapter, plan(method=method), precision or Precision())

    def learn(
        self, batches: Sequence[Sequence[Unit]], count: int, *, checkpoints: bool = False
    ) -> tuple[Sums, Gradients]:
        self.adapter.values.grad.zero_()
        sums = Sums()
        for batch in batches:
            sums.add(self.passes.learn(batch, count, 1.0, checkpoints=checkpoints))
        return sums, {k: v.copy() for k, v in self.adapter.arrays(self.adapter.values.grad).items()}


class Plain:
    """transformers and peft as everybody uses them, one sequence at a time."""

    def __init__(self, case: Case) -> None:
        base = transformers.AutoModelForCausalLM.from_pretrained(case.base, dtype=torch.float32)
        of = shapes_of(case.base)
        paths = {name.split("model.", 2)[2].rpartition(".lora_")[0] for name in of}
        config = peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules="|".join(rf"(.*\.)?{path}" for path in paths)
        )
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            self.model = peft.get_peft_model(base, config).eval()
        self.weights = {
            name.replace(".default", ""): weight
            for name, weight in self.model.named_parameters()
            if weight.requires_grad
        }
        for name, array in adapter_of(of).items():
            self.weights[name].data = torch.from_numpy(array)

    def likelihoods(self, tokens: Tokens) -> Any:
        logits = self.model(torch.tensor([tokens.ids])).logits[0]
        each = logits.log_softmax(-1)[torch.arange(len(tokens.ids) - 1), torch.tensor(tokens.ids[1:])]
        return each[torch.tensor(tokens.targets) - 1]

    def gradients(self, loss: Any) -> Gradients:
        self.model.zero_grad()
        loss.backward()
        return {name: weight.grad.numpy() for name, weight in self.weights.items()}


def near(one: Gradients, other: Gradients, tolerance: float) -> None:
    assert one.keys() == other.keys()
    scale = max(np.abs(array).max() for array in other.values())
    for name, array in other.items():
        assert np.abs(one[name] - array).max() <= tolerance * scale, name


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return case_of(tmp_path / "base", tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_row_is_each_example_alone(tmp_path: Path, family: str) -> None:
    """Loss and gradients of every family, windows, experts and latent attention included."""
    case = case_of(tmp_path / "base", tmp_path, family)
    plain = Plain(case)
    count = sum(len(tokens.targets) for (tokens,) in units())
    loss = sum(-plain.likelihoods(tokens).sum() for (tokens,) in units()) / count
    expected = plain.gradients(loss)
    ours = Ours(case)
    sums, together = ours.learn([units()], count)
    assert sums.loss / count == pytest.approx(float(loss.detach()), rel=1e-5)
    near(together, expected, 1e-4)
    _, apart = ours.learn([[unit] for unit in units()], count)
    near(apart, expected, 1e-4)
    _, thin = ours.learn([units()[:2], units()[2:]], count, checkpoints=True)
    near(thin, expected, 1e-4)


def test_what_a_step_came_to_is_counted_without_padding(case: Case) -> None:
    ours = Ours(case)
    whole, _ = ours.learn([units()], 1)
    parts, _ = ours.learn([units()[:3], units()[3:]], 1)
    assert whole.tokens == parts.tokens == sum(LENGTHS)
    assert whole.square_tokens == parts.square_tokens == sum(size * size for size in LENGTHS)
    assert whole.count == whole.target_tokens == 20 + 4 + 13 + 1
    assert whole.right == parts.right
    plain = Plain(case)
    right = 0
    for (tokens,) in units():
        likeliest = plain.model(torch.tensor([tokens.ids])).logits[0].argmax(-1)
        right += sum(int(likeliest[place - 1]) == tokens.ids[place] for place in tokens.targets)
    assert whole.right == right


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_preferences_are_those_of_the_paper(tmp_path: Path, family: str) -> None:
    """-log sigmoid(beta * ((preferred now - base) - (other now - base))), a mean over the pairs."""
    case = case_of(tmp_path / "base", tmp_path, family)
    plain = Plain(case)
    losses, right = [], 0
    for preferred, other in pairs():
        now = [plain.likelihoods(tokens).sum() for tokens in (preferred, other)]
        with torch.no_grad(), plain.model.disable_adapter():
            base = [plain.likelihoods(tokens).sum() for tokens in (preferred, other)]
        margin = 0.1 * ((now[0] - base[0]) - (now[1] - base[1]))
        losses.append(-torch.nn.functional.logsigmoid(margin))
        right += int(margin > 0)
    loss: Any = sum(losses)
    expected = plain.gradients(loss / 2)
    ours = Ours(case, "dpo")
    sums, together = ours.learn([pairs()], 2)
    assert (sums.count, sums.right, sums.tokens) == (2, right, sum(LENGTHS))
    assert sums.mean == pytest.approx(float(loss.detach()) / 2, rel=1e-5)
    near(together, expected, 1e-4)
    _, thin = ours.learn([pairs()[:1], pairs()[1:]], 2, checkpoints=True)
    near(thin, expected, 1e-4)


def test_a_head_that_caps_its_logits_is_followed(tmp_path: Path) -> None:
    """As Gemma's does where its configuration says so; logits come in pieces of a few rows."""
    case = case_of(tmp_path / "base", tmp_path, "gemma3_text")
    plain = Plain(case)
    for model in (case.loaded.model, plain.model):
        model.config.final_logit_softcapping = 2.0
    expected = plain.gradients(sum(-plain.likelihoods(tokens).sum() for (tokens,) in units()))
    _, together = Ours(case).learn([units()], 1)
    near(together, expected, 1e-4)


def test_logits_come_in_pieces(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Ours(case)
    whole, expected = ours.learn([units()], 1)
    monkeypatch.setitem(CHUNK_BYTES_MAX, "cpu", 3 * 4 * case.loaded.model.config.vocab_size)
    pieces, gradients = ours.learn([units()], 1)
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-6)
    assert pieces.right == whole.right
    near(gradients, expected, 1e-5)


def test_judging_is_the_same_loss_and_no_gradient(case: Case) -> None:
    ours = Ours(case)
    learned, _ = ours.learn([units()], 1)
    ours.adapter.values.grad.zero_()
    judged = ours.passes.judge(units())
    assert judged.loss == pytest.approx(learned.loss, rel=1e-6)
    assert not ours.adapter.values.grad.any()


def test_sixteen_bits_give_nearly_the_same_gradient(tmp_path: Path) -> None:
    """Autocast over a base in bfloat16, factors in float32: what a card does, on this processor."""
    exact = Ours(case_of(tmp_path / "base", tmp_path))
    _, expected = exact.learn([units()], 10)
    ours = Ours(case_of(tmp_path / "base", tmp_path, dtype="bfloat16"), precision=Precision("bfloat16"))
    _, rough = ours.learn([units()], 10, checkpoints=True)
    one, other = (np.concatenate([g[name].ravel() for name in sorted(g)]) for g in (rough, expected))
    assert one.dtype == np.float32
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert cosine > 0.98


def test_the_base_is_as_it_was_afterwards(case: Case) -> None:
    """Adapters of other ranks and targets follow each other on one model; nothing of them stays."""
    model = case.loaded.model
    before = {name: type(part) for name, part in model.named_modules()}
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    for rank, targets in ((2, ["q_proj"]), (3, ["down_proj", "v_proj"])):
        path = case.folder / "other.safetensors"
        path.write_bytes(lora.encode(adapter_of(shapes_of(case.base, rank, targets))))
        adapter = Adapter(model, work_pb2.LoraConfig(rank=rank, alpha=1, targets=targets), path)
        assert adapter.parameters == lora.parameters(shapes_of(case.base, rank, targets))
        assert [name for name, weight in model.named_parameters() if weight.requires_grad]
        adapter.remove()
    assert {name: type(part) for name, part in model.named_modules()} == before
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())


def test_what_a_pass_keeps_is_measured_for_each_token(case: Case) -> None:
    """Against the sum over twice as long a row, without what is there once."""
    passes = Ours(case).passes
    each = passes.kept_bytes()
    assert passes._kept(192) - passes._kept(64) == pytest.approx(128 * each, rel=0.02)
    hidden, layers = 32, 2
    assert each > layers * hidden * 4 * 4
    with passes._checkpointing(on=True):
        assert passes.kept_bytes() < each / 4
