"""The running batch computes for every row what that row alone would get, whoever joins or leaves meanwhile."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_tiny import write_tiny

from worker.engines import weights
from worker.engines.batch import CHUNK_S, CHUNK_TOKENS_MIN, Batch, Decoding, Embedding, unit
from worker.engines.packed import PackedLinear, pack
from worker.engines.pieces import Pieces
from worker.engines.rows import Rows
from worker.engines.sampling import Sampler
from worker.engines.stops import Stops

CONTEXT = 256
MARGIN = 1e-3  # a difference is accepted only where two tokens were closer than this


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> weights.Loaded:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    return weights.load_model(write_tiny(folder, request.param), folder, weights.Device("cpu", "float32"))


class Sequence:
    """One row's sampler and what it got; as the engine does it, without text."""

    def __init__(self, prompt: list[int], tokens: int, sampler: Sampler, owner: Any = None) -> None:
        self.prompt, self.tokens, self.sampler = prompt, tokens, sampler
        self.output: list[int] = []
        pieces = Pieces(choice=sampler.choice, stops=Stops(()), tokens_max=tokens)
        self.member = Decoding(owner or self, list(prompt), pieces, sampler, len(prompt), self.heard)

    def heard(self, member: Decoding, logits: Any) -> bool:
        token = self.sampler.pick(logits, len(self.output))
        self.output.append(token)
        member.ids.append(token)
        return len(self.output) < self.tokens


def logits_alone(loaded: weights.Loaded, ids: list[int]) -> Any:
    with torch.inference_mode():
        return loaded.model(torch.tensor([ids])).logits[0, -1].numpy()


def margin(logits: Any, sampler: Sampler, position: int) -> float:
    """How far the winner is ahead: how much its logit must sink until another wins."""
    winner = sampler.pick(logits, position)
    changed = logits.copy()
    changed[winner] -= MARGIN * max(sampler.temperature, 1e-6)
    return 0.0 if sampler.pick(changed, position) != winner else 1.0


def assert_alone(loaded: weights.Loaded, sequence: Sequence) -> None:
    """Every token is the one of a fresh forward pass over all that stands before it."""
    assert len(sequence.output) == sequence.tokens
    for position, token in enumerate(sequence.output):
        logits = logits_alone(loaded, sequence.prompt + sequence.output[:position])
        expected = sequence.sampler.pick(logits, position)
        assert token == expected or margin(logits, sequence.sampler, position) == 0.0


def batch_of(loaded: weights.Loaded, rows: int = 6, chunk: int = 16) -> Batch:
    return Batch(loaded.model, Rows(loaded.model.config.num_hidden_layers, CONTEXT), rows, chunk)


def some(chance: random.Random, **changes: Any) -> Sequence:
    prompt = [chance.randrange(256, 276) for _ in range(chance.choice([1, 3, 15, 16, 17, 60]))]
    sampler = Sampler(chance.randrange(2**32), 0, chance.choice([0.0, 0.7, 1.0]), chance.choice([0, 5]), 0.95)
    return Sequence(prompt, chance.randrange(1, 30), sampler, **changes)


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_as_if_alone_while_others_join_and_leave(tiny: weights.Loaded, seed: int) -> None:
    chance = random.Random(seed)
    batch = batch_of(tiny)
    sequences = [some(chance) for _ in range(14)]
    dropped = set(map(id, chance.sample(sequences, 3)))
    waiting = list(sequences)
    while waiting or not batch.idle:
        if waiting and chance.random() < 0.4:
            batch.add([waiting.pop().member])
        batch.step()
        assert [member.row for member in batch.decoding] == list(range(len(batch.decoding)))
        rows = sorted(member.row for member in [*batch.decoding, *batch.filling])
        assert rows == list(range(len(batch.rows.lengths)))
        if chance.random() < 0.1:
            for sequence in sequences:
                if id(sequence) in dropped:
                    batch.drop(sequence)
    assert batch.rows.lengths == []
    for sequence in sequences:
        if id(sequence) not in dropped:
            assert_alone(tiny, sequence)


def test_choices_read_their_prompt_once(tiny: weights.Loaded) -> None:
    """Others of the attempt take over what the first has read, and still differ."""
    batch = batch_of(tiny, chunk=16)
    prompt = [256 + index % 20 for index in range(50)]
    owner = object()
    choices = [Sequence(prompt, 12, Sampler(9, choice), owner) for choice in range(4)]
    batch.add([choice.member for choice in choices])
    reads = 0
    while not batch.idle:
        reads += bool(batch.filling or batch.waiting)
        batch.step()
    assert reads <= 4 + 3 + 1, "four pieces for the first, one token for each of the others"
    for choice in choices:
        assert_alone(tiny, choice)
    assert len({tuple(choice.output) for choice in choices}) == 4


def test_a_long_prompt_does_not_stop_those_who_decode(tiny: weights.Loaded) -> None:
    batch = batch_of(tiny, chunk=16)
    batch.model = paced = Paced(tiny.model, token_s=CHUNK_S / 16, pair_s=0.0)
    batch.clock = lambda: paced.now
    talking = Sequence([260], 60, Sampler(1, 0))
    batch.add([talking.member])
    batch.step()
    long = Sequence([256 + index % 20 for index in range(200)], 3, Sampler(2, 0))
    short = Sequence([261, 262], 3, Sampler(3, 0))
    batch.add([long.member, short.member])
    said, when_short = len(talking.output), 0
    while not long.output:
        batch.step()
        when_short = when_short or (len(short.output) and len(talking.output))
    assert len(talking.output) - said >= 200 // 16
    assert when_short, "the short prompt was read between pieces of the long one"
    while not batch.idle:
        batch.step()
    for sequence in (talking, long, short):
        assert_alone(tiny, sequence)


def test_more_sequences_than_rows_wait_their_turn(tiny: weights.Loaded) -> None:
    batch = batch_of(tiny, rows=2)
    sequences = [Sequence([260 + index], 5, Sampler(index, 0)) for index in range(5)]
    batch.add([sequence.member for sequence in sequences])
    while not batch.idle:
        batch.step()
        assert len(batch.rows.lengths) <= 2
    for sequence in sequences:
        assert_alone(tiny, sequence)


@pytest.mark.parametrize("busy", [False, True])
def test_embeddings_are_the_mean_of_the_last_hidden_states(tiny: weights.Loaded, busy: bool) -> None:
    """Short ones side by side, long ones in pieces, also between the tokens of others."""
    batch = batch_of(tiny, chunk=16)
    talking = Sequence([260], 40, Sampler(1, 0))
    if busy:
        batch.add([talking.member])
        batch.step()
    inputs = [
        [256 + (start * index) % 20 for index in range(size)]
        for start, size in enumerate([3, 5, 1, 50, 16, 17])
    ]
    got: dict[int, Any] = {}

    def heard(member: Embedding, vector: Any) -> None:
        got[len(member.ids)] = vector

    batch.add([Embedding(got, ids, heard) for ids in inputs])
    while not batch.idle:
        batch.step()
    for ids in inputs:
        with torch.inference_mode():
            hidden = tiny.model.base_model(torch.tensor([ids])).last_hidden_state[0]
        np.testing.assert_allclose(got[len(ids)], hidden.mean(0).numpy(), atol=1e-4)
    assert np.linalg.norm(unit(got[5])) == pytest.approx(1)
    if busy:
        assert_alone(tiny, talking)


def test_a_batch_that_failed_begins_anew(tiny: weights.Loaded) -> None:
    batch = batch_of(tiny)
    one, two = Sequence([260], 9, Sampler(1, 0)), Sequence([261] * 40, 9, Sampler(1, 0))
    batch.add([one.member, two.member])
    batch.step()
    assert set(batch.clear()) == {one, two}
    assert not batch.rows.lengths
    after = Sequence([262], 5, Sampler(4, 0))
    batch.add([after.member])
    while not batch.idle:
        batch.step()
    assert_alone(tiny, after)


@pytest.mark.parametrize("rows", [1, 3, 16, 70])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_layers_compute_what_plain_ones_do(rows: int, bias: bool) -> None:
    plain = torch.nn.Linear(48, 80, bias=bias)
    packed = PackedLinear(plain)
    with torch.inference_mode():
        values = torch.randn(2, rows, 48)
        np.testing.assert_allclose(packed(values).numpy(), plain(values).numpy(), atol=1e-5)


def test_on_a_cpu_every_linear_layer_is_packed(tiny: weights.Loaded) -> None:
    assert not [module for module in tiny.model.modules() if type(module) is torch.nn.Linear]
    assert pack(tiny.model) == 0


@pytest.mark.parametrize(
    ("machine", "wanted", "expected"),
    [
        ({"cuda": True, "cuda_bfloat16": True, "mps": False}, ("", ""), weights.Device("cuda", "bfloat16")),
        ({"cuda": True, "cuda_bfloat16": False, "mps": False}, ("", ""), weights.Device("cuda", "float16")),
        ({"cuda": False, "cuda_bfloat16": False, "mps": True}, ("", ""), weights.Device("mps", "float16")),
        ({"cuda": False, "cuda_bfloat16": False, "mps": False}, ("", ""), weights.Device("cpu", "float32")),
        ({"cuda": True, "cuda_bfloat16": True, "mps": False}, ("cpu", ""), weights.Device("cpu", "float32")),
        (
            {"cuda": True, "cuda_bfloat16": True, "mps": False},
            ("", "float32"),
            weights.Device("cuda", "float32"),
        ),
    ],
)
def test_the_device_decides_the_dtype_and_the_owner_decides_both(
    machine: dict[str, bool], wanted: tuple[str, str], expected: weights.Device
) -> None:
    assert weights.choose_device(**machine, wanted=wanted[0], dtype=wanted[1]) == expected


@pytest.mark.parametrize(("device", "dtype"), [("cuda", ""), ("toaster", ""), ("", "float8")])
def test_what_the_machine_has_not_is_refused(device: str, dtype: str) -> None:
    from worker.engines.engine import EngineError

    with pytest.raises(EngineError):
        weights.choose_device(cuda=False, cuda_bfloat16=False, mps=False, wanted=device, dtype=dtype)


def test_a_folder_that_lacks_files_is_refused(tmp_path: Path) -> None:
    from worker.engines.engine import EngineError

    paths = write_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="could not be loaded"):
        weights.load_model(paths, tmp_path, weights.Device("cpu", "float32"))
    with pytest.raises(EngineError, match=r"no config\.json beside it"):
        weights.load_model([tmp_path / "tokenizer.json"], tmp_path, weights.Device("cpu", "float32"))


@dataclass
class Paced:
    """A model whose time is a number: so much for each token, and for each pair of positions."""

    model: Any
    token_s: float
    pair_s: float
    now: float = 0.0
    pieces: list[tuple[int, float]] = field(default_factory=list)  # tokens, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, **given: Any) -> Any:
        tokens = given["input_ids"].numel()
        seconds = self.token_s * tokens + self.pair_s * tokens * given["attention_mask"].shape[-1]
        self.now += seconds
        if given["input_ids"].shape[1] > 1:
            self.pieces.append((tokens, seconds))
        return self.model(**given)


def test_pieces_get_shorter_as_the_context_gets_longer(tiny: weights.Loaded) -> None:
    """No piece of a long prompt takes long, and everybody who decodes advances between any two of them."""
    batch = batch_of(tiny, rows=4, chunk=64)
    batch.model = paced = Paced(tiny.model, token_s=0.001, pair_s=0.00005)
    batch.clock = lambda: paced.now
    talking = [Sequence([260 + index], 200, Sampler(index, 0)) for index in range(2)]
    for one in talking:
        batch.add([one.member])
        batch.step()
    said, read = [len(one.output) for one in talking], len(paced.pieces)
    batch.add([Sequence([256 + index % 20 for index in range(250)], 1, Sampler(9, 0)).member])
    while batch.filling or batch.waiting:
        batch.step()
        assert [len(one.output) for one in talking] == [count + len(paced.pieces) - read for count in said]
        said, read = [len(one.output) for one in talking], len(paced.pieces)
    lengths = [tokens for tokens, _ in paced.pieces]
    assert sum(lengths) == 250
    assert lengths[0] == 64
    assert lengths[1] > lengths[-2] >= CHUNK_TOKENS_MIN, "the later, the costlier, the shorter"
    assert all(seconds < 1 for _, seconds in paced.pieces)


@pytest.mark.parametrize(
    ("tokens", "seconds", "expected"),
    [
        (64, 0.6, 32),  # twice too slow
        (64, 0.15, 128),
        (64, 0.001, 128),  # no more than twice as long at a time
        (64, 90.0, CHUNK_TOKENS_MIN),
        (20, 0.2, 64),  # a short piece that was fast enough tells nothing
        (20, 0.6, CHUNK_TOKENS_MIN),
    ],
)
def test_the_length_of_pieces_follows_their_time(
    tiny: weights.Loaded, tokens: int, seconds: float, expected: int
) -> None:
    batch = batch_of(tiny, chunk=64)
    batch._adapt(tokens, seconds)
    assert batch.chunk_tokens == expected
