"""Pieces of a fine-tune: each is what a plain loop does, cut anywhere, in whatever micro-batches."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from fixtures_training import (
    ALPHA,
    RANK,
    TARGETS,
    Came,
    Case,
    Told,
    adapter_of,
    case_of,
    chat,
    examples,
    pairs,
    plan,
    shapes_of,
)

from potluck import deltas, lora, shuffle, tensors
from potluck.training_data import example_of
from potluck.v1 import work_pb2
from worker.engines.engine import EngineError, JobError
from worker.training import passes
from worker.training.attempt import reader_of
from worker.training.loop import StoppedError
from worker.training.memory import Room
from worker.training.precision import LossScale

ALL = examples(24)
WIDE = Room(1024, 1024, 1024)
NARROW = Room(64, 256, 64)  # the longer examples need checkpoints there


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("training")
    return case_of(folder / "base", folder)


@pytest.fixture
def case(base: Case, tmp_path: Path) -> Case:
    return Case(base.base, tmp_path, base.loaded)


def work(first: int = 0, last: int = 6, **changes: Any) -> work_pb2.TrainingWork:
    of_plan = {
        key: changes.pop(key)
        for key in list(changes)
        if key in work_pb2.TrainingPlan.DESCRIPTOR.fields_by_name
    }
    return work_pb2.TrainingWork(plan=plan(**of_plan), first_step=first, last_step=last, **changes)


def start(case: Case, **given: Any) -> bytes:
    return lora.encode(adapter_of(shapes_of(case.base), **given))


def same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


# -- what it computes


def test_a_training_is_what_a_plain_loop_of_peft_does(case: Case) -> None:
    """Padded batches, AdamW, clipping, warm-up and cosine as everybody writes them: the same losses and factors."""
    came = case.train(work(learning_rate=3e-3, weight_decay=0.1, warmup_steps=2), ALL, start(case))
    steps, losses = plain_loop(case, learning_rate=3e-3, weight_decay=0.1, warmup_steps=2)
    np.testing.assert_allclose([step.train_loss for step in came.steps], losses, rtol=1e-5)
    for name, array in came.adapter().items():
        np.testing.assert_allclose(array, steps[name], atol=2e-5)


def plain_loop(
    case: Case, *, learning_rate: float, weight_decay: float, warmup_steps: int
) -> tuple[dict[str, Any], list[float]]:
    base = transformers.AutoModelForCausalLM.from_pretrained(case.base, dtype=torch.float32)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        model = peft.get_peft_model(
            base, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS))
        )
    weights = {n.replace(".default", ""): w for n, w in model.named_parameters() if w.requires_grad}
    for name, array in adapter_of(shapes_of(case.base)).items():
        weights[name].data = torch.from_numpy(array)
    optimizer = torch.optim.AdamW(weights.values(), lr=learning_rate, weight_decay=weight_decay)
    reader = reader_of(case.loaded, 256)
    losses = []
    for step in range(6):
        places = shuffle.examples_of(9, 24, 4, step)
        rows = [reader.read(example_of(ALL[place]), "sft")[0] for place in places]
        longest = max(len(row.ids) for row in rows)
        ids = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in rows])
        mask = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows])
        labels = torch.full_like(ids, -100)
        for index, row in enumerate(rows):
            labels[index, list(row.targets)] = ids[index, list(row.targets)]
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        done = (step - warmup_steps) / (6 - warmup_steps)
        warm = (step + 1) / (warmup_steps + 1)
        factor = warm if step < warmup_steps else 0.5 * (1 + np.cos(np.pi * done))
        optimizer.param_groups[0]["lr"] = learning_rate * factor
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {name: weight.detach().numpy() for name, weight in weights.items()}, losses


@pytest.mark.parametrize(("method", "lines"), [("sft", ALL), ("dpo", pairs(24))])
def test_a_training_that_is_cut_goes_on_bit_for_bit(
    case: Case, method: str, lines: list[dict[str, Any]]
) -> None:
    """6 steps at once, and 2 and 4 over files: the same adapter, the same state, the same curve."""
    whole = case.train(work(method=method), lines, start(case))
    first = case.train(work(0, 2, method=method), lines, start(case))
    rest = case.train(work(2, 6, method=method), lines, first.adapter_path, first.state_path)
    assert same(whole.adapter_path, rest.adapter_path)
    assert same(whole.state_path, rest.state_path)
    assert whole.steps == first.steps + rest.steps
    assert [step.step for step in whole.steps] == list(range(6))
    assert (rest.trained.first_step, rest.trained.steps) == (2, 4)
    assert whole.trained.tokens == first.trained.tokens + rest.trained.tokens


def test_micro_batches_and_checkpoints_change_nothing(case: Case) -> None:
    wide = case.train(work(), ALL, start(case), room=WIDE)
    narrow = case.train(work(), ALL, start(case), room=NARROW)
    for one, other in zip(wide.steps, narrow.steps, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)
        assert (one.tokens, one.target_tokens) == (other.tokens, other.target_tokens)
    assert narrow.trained == wide.trained


@pytest.mark.parametrize(("method", "lines"), [("sft", ALL), ("dpo", pairs(24))])
def test_the_loss_falls_and_the_examples_of_the_validation_show_it(
    case: Case, method: str, lines: list[dict[str, Any]]
) -> None:
    before = case.train(
        work(0, 0, validate=True, method=method), lines, start(case, grown=False), validation=lines
    )
    after = case.train(
        work(0, 18, validate=True, method=method, steps=18), lines, start(case, grown=False), validation=lines
    )
    assert after.trained.valid_loss < 0.85 * before.trained.valid_loss
    assert after.trained.valid_accuracy >= before.trained.valid_accuracy
    assert after.steps[-1].train_loss < after.steps[0].train_loss
    if method == "dpo":
        assert before.trained.valid_loss == pytest.approx(np.log(2)), "with B = 0 it is its own reference"
        assert after.trained.valid_target_tokens == 24, "a mean over pairs"


def test_what_it_read_is_counted(case: Case) -> None:
    reader = reader_of(case.loaded, 256)
    lengths = [len(reader.read(example_of(line), "sft")[0].ids) for line in ALL]
    came = case.train(work(validate=True, validated=[1, 3]), ALL, start(case), validation=ALL)
    trained = came.trained
    assert trained.tokens == sum(lengths) == sum(step.tokens for step in came.steps)
    assert trained.square_tokens == sum(length**2 for length in lengths)
    assert trained.valid_tokens == lengths[1] + lengths[3]
    assert trained.valid_square_tokens == lengths[1] ** 2 + lengths[3] ** 2
    targets = [len(reader.read(example_of(ALL[place]), "sft")[0].targets) for place in (1, 3)]
    assert trained.valid_target_tokens == sum(targets)


def test_a_validation_alone_trains_nothing_and_writes_nothing(case: Case) -> None:
    came = case.train(work(0, 0, validate=True), ALL, start(case), validation=ALL)
    assert (came.trained.steps, came.trained.tokens, came.steps) == (0, 0, [])
    assert came.trained.HasField("valid_loss")
    assert list(came.folder.iterdir()) == []
    parts = [
        case.train(work(0, 0, validate=True, validated=places), ALL, start(case), validation=ALL).trained
        for places in (range(10), range(10, 24))
    ]
    mean = sum(part.valid_loss * part.valid_target_tokens for part in parts) / sum(
        part.valid_target_tokens for part in parts
    )
    assert mean == pytest.approx(came.trained.valid_loss, rel=1e-6), "parts of it add up"


# -- sixteen bits


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_learn_nearly_the_same_and_go_on_bit_for_bit(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """In float16 the loss is scaled; a scale that is too large gives way within the step, and is kept."""
    monkeypatch.setattr("worker.training.attempt.LossScale", lambda: LossScale(2.0**40))
    half = case_of(tmp_path / "half", tmp_path / "half", dtype=dtype)
    exact = case.train(work(), ALL, start(case))
    whole = half.train(work(), ALL, start(half))
    for step, other in zip(whole.steps, exact.steps, strict=True):
        assert step.train_loss == pytest.approx(other.train_loss, rel=0.01)
    assert all(array.dtype == np.float32 for array in whole.adapter().values())
    first = half.train(work(0, 2), ALL, start(half))
    rest = half.train(work(2, 6), ALL, first.adapter_path, first.state_path)
    assert same(whole.adapter_path, rest.adapter_path)
    assert same(whole.state_path, rest.state_path)
    state, _ = tensors.read(whole.state_path.read_bytes())
    assert ("loss_scale" in state) == (dtype == "float16")
    if dtype == "float16":
        assert 1 < state["loss_scale"][0] < 2.0**40
        bad = tensors.write(state | {"loss_scale": np.array([np.nan, 0])})
        (tmp_path / "bad.safetensors").write_bytes(bad)
        given = (work(6, 7, steps=7), ALL, whole.adapter_path, tmp_path / "bad.safetensors")
        refused(half, "bad_state", "loss_scale is missing, or not two numbers", *given)


# -- when it ends


def test_a_segment_ends_with_the_step_that_is_done_when_its_time_is_up(case: Case) -> None:
    times = iter(range(0, 1000, 10))
    told = Told(now=lambda: float(next(times)))
    came = case.train(work(seconds_max=25), ALL, start(case), told=told)
    assert came.trained.steps == 3
    rest = case.train(work(3, 6), ALL, came.adapter_path, came.state_path)
    assert same(rest.adapter_path, case.train(work(), ALL, start(case)).adapter_path)


def test_it_stops_within_a_step(case: Case) -> None:
    told = Told(stop_after=5)
    with pytest.raises(StoppedError):
        case.train(work(), ALL, start(case), told=told, room=NARROW)
    assert len(told.steps) < 2
    told = Told(stop_after=3)
    with pytest.raises(StoppedError):
        case.train(work(0, 0, validate=True), ALL, start(case), validation=ALL, told=told, room=NARROW)


def test_examples_without_anything_to_learn_are_passed_over(case: Case) -> None:
    """Cut before the answer begins: they cost nothing and change nothing, whole steps of them, too."""
    lines = [chat("a " * 200, "b") if index % 2 else line for index, line in enumerate(ALL)]
    came = case.train(work(sequence_tokens=100, batch_size=1, steps=24, last=24), lines, start(case))
    empty = [step for step in came.steps if not step.target_tokens]
    assert len(empty) == 12
    assert {(step.tokens, step.train_loss, step.gradient_norm) for step in empty} == {(0, 0.0, 0.0)}
    state, _ = tensors.read(came.state_path.read_bytes())
    assert state["steps"].tolist() == [24, 12]
    with pytest.raises(JobError, match="nothing of the validation's answers is left"):
        case.train(
            work(0, 0, validate=True, sequence_tokens=100),
            lines,
            start(case),
            validation=[chat("a " * 200, "b")],
        )


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_a_training_that_diverges_ends_with_its_step(case: Case, rate: float) -> None:
    told = Told()
    with pytest.raises(JobError, match=r"step \d is (nan|inf): the training has diverged") as raised:
        case.train(
            work(learning_rate=rate, schedule="constant", gradient_norm_max=0), ALL, start(case), told=told
        )
    assert (raised.value.code, raised.value.fault) == ("loss_not_finite", work_pb2.FAULT_JOB)
    assert f"step {len(told.steps)} is" in str(raised.value)


# -- memory


class Scarce:
    """A machine that has no memory for more than so many tokens at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens_max: int) -> None:
        self.learned: list[int] = []
        inner = passes.Passes._loss

        def loss(these: Any, units: Any) -> Any:
            tokens = sum(len(each.ids) for unit in units for each in unit)
            if tokens > tokens_max:
                raise RuntimeError(
                    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
                )
            self.learned.append(tokens)
            return inner(these, units)

        monkeypatch.setattr(passes.Passes, "_loss", loss)


def test_a_step_that_runs_out_of_memory_is_done_in_smaller_micro_batches(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = case.train(work(validate=True), ALL, start(case), room=WIDE, validation=ALL)
    scarce = Scarce(monkeypatch, 130)
    came = case.train(work(validate=True), ALL, start(case), room=WIDE, validation=ALL)
    assert max(scarce.learned) <= 130
    assert came.trained.tokens == expected.trained.tokens
    for one, other in zip(came.steps, expected.steps, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.tokens == other.tokens
    assert came.trained.valid_loss == pytest.approx(expected.trained.valid_loss, rel=1e-3)


def test_only_where_one_example_is_too_much_it_fails_and_blames_the_worker(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scarce(monkeypatch, 10)
    with pytest.raises(EngineError, match="not enough to train on an example of") as raised:
        case.train(work(), ALL, start(case))
    assert (raised.value.code, raised.value.fault) == ("out_of_memory", work_pb2.FAULT_WORKER)


def test_other_errors_of_torch_are_not_taken_for_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(passes.Passes, "_loss", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        case.train(work(), ALL, start(case))


def test_the_owners_cap_is_kept_before_anything_is_computed(case: Case) -> None:
    """No allocator refuses there, so it is reckoned."""
    with pytest.raises(EngineError, match="does not fit into this worker's memory") as raised:
        case.train(work(), ALL, start(case), cap_bytes=1)
    assert raised.value.code == "out_of_memory"


# -- rounds


def test_a_share_of_a_round_answers_what_it_changed(case: Case) -> None:
    """Its own examples in their order, from a bfloat16 adapter; the delta is start minus end, to int8."""
    leased = [3, 0, 7, 11, 5]
    of = shapes_of(case.base)
    began = adapter_of(of)
    given: dict[str, Any] = {"leased": leased, "batch_size": 2, "steps": 50, "schedule": "linear"}
    half = lora.encode(began, bfloat16=True)
    came = case.train(work(20, 23, delta=True, **given), ALL, half)
    assert [path.name for path in came.folder.iterdir()] == ["delta.safetensors"]
    assert [step.step for step in came.steps] == [20, 21, 22]
    reader = reader_of(case.loaded, 256)
    lengths = [len(reader.read(example_of(ALL[place]), "sft")[0].ids) for place in leased]
    assert [step.tokens for step in came.steps] == [sum(lengths[:2]), sum(lengths[2:4]), lengths[4]]
    changed = deltas.decode((came.folder / "delta.safetensors").read_bytes())
    ended = case.train(work(20, 23, **given), ALL, half).adapter()
    assert changed.keys() == of.keys()
    whole = case.train(work(20, 23, delta=True, **given), ALL, half)
    assert same(came.folder / "delta.safetensors", whole.folder / "delta.safetensors"), (
        "anybody can repeat it"
    )
    # The same without the share's warm-up has gone further in the same direction.
    rounded = {name: tensors.rounded(array) for name, array in began.items()}
    one = np.concatenate([changed[name].ravel() for name in of])
    other = np.concatenate([(rounded[name] - ended[name]).ravel() for name in of])
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.9
    assert np.linalg.norm(one) < np.linalg.norm(other)


def test_a_delta_is_exactly_start_minus_end(case: Case) -> None:
    """Where the share is one step, the warm-up is a third of the rate: AdamW's first step is the rate itself."""
    began = adapter_of(shapes_of(case.base))
    given: dict[str, Any] = {"leased": [0, 1, 2, 3], "schedule": "constant", "warmup_steps": 0}
    came = case.train(work(0, 1, delta=True, learning_rate=3e-3, **given), ALL, lora.encode(began))
    plain = case.train(work(0, 1, learning_rate=1e-3, **given), ALL, lora.encode(began)).adapter()
    for name, array in deltas.decode((came.folder / "delta.safetensors").read_bytes()).items():
        np.testing.assert_allclose(array, began[name] - plain[name], atol=1e-3 / 127)


# -- what it is given


def refused(case: Case, code: str, why: str, *given: Any, **more: Any) -> None:
    with pytest.raises(JobError, match=why) as raised:
        case.train(*given, **more)
    assert (raised.value.code, raised.value.fault) == (code, work_pb2.FAULT_JOB)


BAD_PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "ppo"}, "'ppo'; sft and dpo are known"),
    "rank": ({"lora": work_pb2.LoraConfig(rank=10_000, alpha=1)}, "the rank is 10000"),
    "alpha": ({"lora": work_pb2.LoraConfig(rank=4, alpha=float("nan"))}, "alpha"),
    "batch": ({"batch_size": 0}, "at least one example"),
    "context": ({"sequence_tokens": 513}, "may have 513 tokens; this model holds 2 to 512"),
    "rate": ({"learning_rate": 0.0}, "the learning rate"),
    "rate infinite": ({"learning_rate": float("inf")}, "the learning rate"),
    "schedule": ({"schedule": "wild"}, "must be one of constant, linear, cosine"),
    "decay": ({"weight_decay": 2.0}, "weight decay"),
    "norm": ({"gradient_norm_max": float("nan")}, "norm of a gradient"),
    "beta": ({"method": "dpo", "dpo_beta": 0.0}, "beta"),
    "beyond": ({"last": 7}, "has 6 steps"),
    "backwards": ({"first": 3, "last": 2}, "ends before it begins"),
    "nothing": ({"last": 0}, "neither steps nor a validation"),
    "leased beyond": ({"leased": [24], "last": 1}, "leased that is not in the file"),
    "leased too many": ({"leased": range(9), "last": 2}, "9 leased examples"),
    "leased too few": ({"leased": range(4), "last": 2}, "4 leased examples"),
}


@pytest.mark.parametrize(("changes", "why"), BAD_PLANS.values(), ids=BAD_PLANS)
def test_a_plan_that_nobody_can_follow_is_refused(case: Case, changes: dict[str, Any], why: str) -> None:
    refused(case, "bad_plan", why, work(**changes), ALL, start(case))


def test_examples_that_are_not_those_of_the_plan_are_refused(case: Case) -> None:
    refused(case, "bad_examples", "24 examples, the file has 23", work(), ALL[:-1], start(case))
    refused(
        case,
        "bad_examples",
        r"example \d+: .*no example for the method dpo",
        work(method="dpo"),
        ALL,
        start(case),
    )
    lines = [*ALL[:-1], {"messages": []}]
    refused(case, "bad_examples", "example 24: messages: a list of messages", work(), lines, start(case))


def test_a_validation_needs_its_file(case: Case) -> None:
    refused(case, "bad_plan", "no file for its validation", work(0, 0, validate=True), ALL, start(case))


def adapters(case: Case) -> dict[str, tuple[bytes, str]]:
    good = adapter_of(shapes_of(case.base))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    deep = name.replace("layers.0", "layers.7")
    head = name.replace("layers.0.self_attn.q_proj", "embed_tokens")
    return {
        "another base": (lora.encode(good | {name: np.zeros((RANK, 64), "<f4")}), r"is \[4, 64\], and \[4, 32\] is"),
        "another rank": (lora.encode(adapter_of(shapes_of(case.base, 8))), r"is \[8, 64\], and \[4, 64\]"),
        "more layers": (lora.encode(good | {deep: good[name]}), "layers.7.* is not in this model"),
        "other places": (lora.encode(good | {head: good[name]}), "embed_tokens, which cannot have one"),
        "half": (lora.encode({k: v for k, v in good.items() if k != name}), "without its other factor"),
        "not finite": (lora.encode(good | {name: np.full_like(good[name], np.nan)}), "not all finite"),
        "noise": (b"noise" * 9, "no safetensors"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "which", ["another base", "another rank", "more layers", "other places", "half", "not finite", "noise"]
)
def test_an_adapter_of_something_else_is_refused(case: Case, which: str) -> None:
    data, why = adapters(case)[which]
    refused(case, "bad_adapter", why, work(), ALL, data)
    case.train(work(0, 1), ALL, start(case))  # and the model is as it was


def test_an_adapter_for_other_targets_is_refused(case: Case) -> None:
    config = work_pb2.LoraConfig(rank=RANK, alpha=ALPHA, targets=["q_proj"])
    refused(case, "bad_adapter", "and others are to be trained", work(lora=config), ALL, start(case))


@pytest.fixture(scope="module")
def segment(base: Case, tmp_path_factory: pytest.TempPathFactory) -> Came:
    case = Case(base.base, tmp_path_factory.mktemp("segment"), base.loaded)
    return case.train(work(0, 2), ALL, start(case))


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
BAD_STATES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({f"exp_avg/{NAME}": None}, "exp_avg of .*q_proj.lora_A.weight is missing"),
    "too much": ({"exp_avg/more": np.zeros(1, "<f4")}, "exp_avg/more is no part of it"),
    "shape": ({f"exp_avg_sq/{NAME}": np.zeros((4, 31), "<f4")}, r"is float32 \[4, 31\]"),
    "type": ({f"exp_avg/{NAME}": np.zeros((4, 32), "<f2")}, r"is float16 \[4, 32\]"),
    "NaN": ({f"exp_avg/{NAME}": np.full((4, 32), np.nan, "<f4")}, "values that cannot be"),
    "below zero": ({f"exp_avg_sq/{NAME}": np.full((4, 32), -1, "<f4")}, "values that cannot be"),
    "another step": ({"steps": np.array([3, 2])}, "it is of step 3, and 2 is next"),
    "no step": ({"steps": None}, "steps is missing"),
    "steps": ({"steps": np.array([2, -1])}, "it is of step 2"),
}


@pytest.mark.parametrize(("changes", "why"), BAD_STATES.values(), ids=BAD_STATES)
def test_a_state_that_is_not_this_trainings_is_refused(
    case: Case, segment: Came, changes: dict[str, Any], why: str
) -> None:
    arrays, _ = tensors.read(segment.state_path.read_bytes())
    arrays |= {name: array for name, array in changes.items() if array is not None}
    path = case.folder / "state.safetensors"
    path.write_bytes(tensors.write({n: a for n, a in arrays.items() if changes.get(n, a) is not None}))
    refused(case, "bad_state", why, work(2, 6), ALL, segment.adapter_path, path)


def test_a_state_that_is_no_safetensors_is_refused(case: Case, segment: Came) -> None:
    path = case.folder / "state.safetensors"
    path.write_bytes(segment.state_path.read_bytes()[:-9])
    refused(case, "bad_state", "no safetensors", work(2, 6), ALL, segment.adapter_path, path)
