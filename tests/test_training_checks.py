"""What can be wrong with steps of a training and with its end, one thing after the other."""

from typing import Any

import pytest

from coordinator.training_checks import STEPS_MAX, Told, wrong_steps, wrong_trained
from potluck.v1 import work_pb2

NAN, INFINITE = float("nan"), float("inf")
PLAN = work_pb2.TrainingPlan(method="sft", batch_size=4, sequence_tokens=64, steps=10)
SOME = work_pb2.Artifact(sha256="ab" * 32, bytes=1)


def work(**more: Any) -> work_pb2.TrainingWork:
    return work_pb2.TrainingWork(**{"plan": PLAN, "first_step": 2, "last_step": 4, **more})


def step(number: int, **more: Any) -> work_pb2.TrainingStep:
    given = {
        "train_loss": 2.0,
        "train_accuracy": 0.5,
        "tokens": 50,
        "target_tokens": 20,
        "gradient_norm": 1.0,
    }
    return work_pb2.TrainingStep(step=number, **{**given, **more})


def trained(**more: Any) -> work_pb2.Trained:
    given = {"first_step": 2, "steps": 2, "tokens": 100, "square_tokens": 800, "adapter": SOME, "state": SOME}
    return work_pb2.Trained(**{**given, **more})


def told() -> Told:
    return Told(1, steps=2, last=3)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([step(1)], "step 1 of a part from 2 to 4"),
        ([step(4)], "step 4 of a part from 2 to 4"),
        ([step(3), step(3)], "step 3 after step 3"),
        ([step(3), step(2)], "step 2 after step 3"),
        ([step(2, train_loss=NAN)], "step 2 tells no sound numbers"),
        ([step(2, train_loss=-0.1)], "step 2 tells no sound numbers"),
        ([step(2, gradient_norm=INFINITE)], "step 2 tells no sound numbers"),
        ([step(2, learning_rate=-1e-3)], "step 2 tells no sound numbers"),
        ([step(2, train_accuracy=1.1)], "step 2 has an accuracy of 1.1"),
        ([step(2, train_accuracy=NAN)], "step 2 has an accuracy of nan"),
        ([step(2, tokens=257)], "step 2 counts 20 of 257 tokens"),
        ([step(2, target_tokens=51)], "step 2 counts 51 of 50 tokens"),
        ([step(2)] * (STEPS_MAX + 1), f"{STEPS_MAX + 1} steps in a frame; {STEPS_MAX} are allowed"),
        ([], "an empty frame"),
    ],
)
def test_steps_that_cannot_be(steps: list[work_pb2.TrainingStep], why: str) -> None:
    assert wrong_steps(work(), steps, Told(1)) == why


def test_steps_go_on_from_frame_to_frame() -> None:
    so_far = Told(1)
    assert not wrong_steps(work(), [step(2)], so_far)
    so_far.add([step(2)])
    assert wrong_steps(work(), [step(2)], so_far) == "step 2 after step 2"
    assert not wrong_steps(work(), [step(3)], so_far)


def test_a_preference_pair_is_two_sequences() -> None:
    pairs = work_pb2.TrainingPlan(method="dpo", batch_size=4, sequence_tokens=64)
    assert not wrong_steps(work(plan=pairs), [step(2, tokens=512)], Told(1))
    assert wrong_steps(work(plan=pairs), [step(2, tokens=513)], Told(1))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"steps": 1}, "it says 1 steps, and told 2"),
        ({"first_step": 0}, "2 steps from 0 to 3, with gaps"),
        ({"square_tokens": 99}, "100 tokens in sequences of 64 at most have not 99 as squares"),
        ({"square_tokens": 6_401}, "100 tokens in sequences of 64 at most have not 6401 as squares"),
        ({"tokens": 2**60, "square_tokens": 2**60}, f"have not {2**60} as squares"),
        ({"state": None}, "not the artifacts that were asked for"),
        ({"adapter": None}, "not the artifacts that were asked for"),
        ({"valid_loss": 1.0}, "a validation that was not asked for"),
        ({"valid_tokens": 5, "valid_square_tokens": 5}, "a validation that was not asked for"),
    ],
)
def test_an_end_that_cannot_be(more: dict[str, Any], why: str) -> None:
    assert wrong_trained(work(), trained(**more), told()).endswith(why)


def test_an_end_as_it_was_asked_for() -> None:
    assert not wrong_trained(work(), trained(), told())
    assert not wrong_trained(work(), trained(tokens=0, square_tokens=0), told()), "all of it was cut off"
    assert not wrong_trained(work(delta=True), trained(state=None), told())
    assert wrong_trained(work(delta=True), trained(), told()) == "not the artifacts that were asked for"


def test_steps_with_a_gap_between_them_are_no_part() -> None:
    gap = Told(1, steps=2, last=4)
    wider = work(last_step=6)
    assert wrong_trained(wider, trained(), gap) == "2 steps from 2 to 4, with gaps"


def test_a_part_with_steps_does_at_least_one() -> None:
    nothing = work_pb2.Trained()
    assert wrong_trained(work(), nothing, Told(1)) == "not one step was done"
    assert not wrong_trained(work(last_step=2), nothing, Told(1))
    counted = work_pb2.Trained(tokens=5, square_tokens=25)
    assert wrong_trained(work(last_step=2), counted, Told(1)) == "5 tokens without a step"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, ""),
        ({"valid_target_tokens": 5}, ""),
        ({"valid_loss": None}, "a validation without its loss"),
        ({"valid_loss": None, "valid_target_tokens": 0}, ""),  # nothing in it that counts
        ({"valid_loss": NAN}, "a validation without sound numbers"),
        ({"valid_loss": -1.0}, "a validation without sound numbers"),
        ({"valid_accuracy": 2.0}, "a validation without sound numbers"),
        ({"valid_target_tokens": 6}, "6 of 5 tokens of the validation"),
        ({"valid_square_tokens": 321}, "5 tokens in sequences of 64 at most have not 321 as squares"),
    ],
)
def test_a_validation_has_sound_numbers(more: dict[str, Any], why: str) -> None:
    given = {
        "valid_loss": 1.0,
        "valid_tokens": 5,
        "valid_square_tokens": 25,
        "valid_target_tokens": 3,
        **more,
    }
    assert wrong_trained(work(validate=True), trained(**given), told()) == why
