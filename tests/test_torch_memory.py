"""The owner's cap holds for torch: what would pass it waits, is refused with its reason, or is not loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from fixtures_engine import Heard, completion, start
from fixtures_models import model_cache
from fixtures_tiny import write_tiny
from hypothesis import given
from hypothesis import strategies as st

from potluck.v1 import engine_pb2, work_pb2
from worker.engines import weights
from worker.engines.batch import Batch, Decoding
from worker.engines.engine import EngineError
from worker.engines.footprint import CONTEXT_TOKENS_MIN, Footprint, Shape
from worker.engines.measure import footprint_of, measure
from worker.engines.pieces import Pieces
from worker.engines.rows import Rows
from worker.engines.sampling import Sampler
from worker.engines.stops import Stops
from worker.engines.torch import Torch
from worker.hosts.process import EngineHost

MEGABYTE = 1_000_000
CPU = weights.Device("cpu", "float32")
CONTEXT = 256
SMALL = Shape(
    layer_bytes=(100, 60), item_bytes=4, hidden=8, inner=16, heads=2, heads_width=8, groups=2, vocabulary=50
)


# -- the decision


def test_without_a_cap_everything_fits() -> None:
    footprint = Footprint.of(SMALL, cap_bytes=0, used_bytes=10**12, tokens=512, rows=32)
    assert footprint.fits(10**6, 10**6)
    assert footprint.missing_bytes == 0


@given(
    st.integers(1, 10**8),
    st.integers(0, 10**8),
    st.integers(0, 64),
    st.integers(0, 8192),
    st.integers(1, 512),
)
def test_what_fits_is_below_the_cap_and_one_token_more_is_not(
    cap: int, used: int, rows: int, tokens: int, step: int
) -> None:
    """By a reckoning of its own: all parts added up."""
    footprint = Footprint.of(SMALL, cap_bytes=cap, used_bytes=used, tokens=step, rows=32)

    def takes(tokens: int) -> int:
        cell = (
            160 + 80 + 100 + 2 * 100
        )  # all layers, their outgrown halves, the widest growing, for two heads
        activations = step * (8 * 8 + 4 * 16 + 6 * 8) * 4 + 32 * 50 * 12
        mask = step * (4 + 2)
        return used + activations + footprint.adapters_bytes + tokens * (mask + rows * cell)

    if rows and tokens:
        assert footprint.fits(rows, tokens) == (takes(tokens) <= cap)
    if rows and takes(0) <= cap:
        longest = footprint.tokens_max(rows)
        assert takes(longest) <= cap < takes(longest + 1)


def test_what_is_missing_is_said_and_with_it_there_is_room() -> None:
    tight = Footprint(cap_bytes=1000, fixed_bytes=900, column_bytes=1, cell_bytes=2)
    assert tight.missing_bytes == 900 + 3 * CONTEXT_TOKENS_MIN - 1000
    enough = replace(tight, cap_bytes=1000 + tight.missing_bytes)
    assert enough.missing_bytes == 0
    assert not replace(enough, cap_bytes=enough.cap_bytes - 1).fits(1, CONTEXT_TOKENS_MIN)


# -- the batch


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> weights.Loaded:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    return weights.load_model(write_tiny(folder), folder, CPU)


class Answer:
    """One row's tokens, and what the buffers were at each."""

    def __init__(self, batch: Batch, prompt: int, tokens: int) -> None:
        self.batch, self.tokens = batch, tokens
        self.output: list[int] = []
        pieces = Pieces(choice=0, stops=Stops(()), tokens_max=tokens)
        ids = [256 + index % 20 for index in range(prompt)]
        self.member = Decoding(self, ids, pieces, Sampler(0, 0), prompt, self.heard)

    def heard(self, member: Decoding, logits: Any) -> bool:
        assert self.batch.footprint.fits(*self.batch.rows.capacity), "the buffers passed the cap"
        self.output.append(int(logits.argmax()))
        member.ids.append(self.output[-1])
        return len(self.output) < self.tokens


def batch_for(tiny: weights.Loaded, rows: int = 0, tokens: int = 0) -> Batch:
    """With memory for so many rows of so many tokens, not a token more; 0: no cap."""
    batch = Batch(tiny.model, Rows(tiny.model.config.num_hidden_layers, CONTEXT), 8, 16)
    if rows:
        batch.footprint = Footprint(cap_bytes=tokens * (1 + rows * 2), column_bytes=1, cell_bytes=2)
    return batch


def run(batch: Batch, answers: list[Answer]) -> int:
    """How many at most were in memory at once; they begin in their order."""
    batch.add([answer.member for answer in answers])
    most = 0
    while not batch.idle:
        batch.step()
        begun = [answer.member.reach > 0 for answer in answers]
        assert begun == sorted(begun, reverse=True), "the short ones did not overtake the long one"
        most = max(most, len(batch.filling) + len(batch.decoding))
    return most


def test_rows_wait_for_memory_in_their_order_and_get_the_same_tokens(tiny: weights.Loaded) -> None:
    sizes = [(30, 10), (5, 6), (60, 20), (12, 8), (3, 3), (40, 30)]
    free = batch_for(tiny)
    alone = [Answer(free, *size) for size in sizes]
    assert run(free, alone) == len(sizes), "without a cap all are there at once"
    capped = batch_for(tiny, rows=2, tokens=80)
    answers = [Answer(capped, *size) for size in sizes]
    assert run(capped, answers) == 2
    assert [answer.output for answer in answers] == [answer.output for answer in alone]


def test_choices_of_one_prompt_wait_for_memory_too(tiny: weights.Loaded) -> None:
    capped = batch_for(tiny, rows=3, tokens=60)
    answers = [Answer(capped, 50, 10) for _ in range(7)]
    for answer in answers:
        answer.member.owner = answers[0]
    capped.add([answer.member for answer in answers])
    while not capped.idle:
        capped.step()
        assert len([*capped.filling, *capped.decoding]) <= 3
    assert {tuple(answer.output) for answer in answers} == {tuple(answers[0].output)}
    assert len(answers[0].output) == 10


def test_a_buffer_grows_no_further_than_those_in_it_may_become(tiny: weights.Loaded) -> None:
    """Doubling ahead of need would pass a cap that was only just enough."""
    capped = batch_for(tiny, rows=3, tokens=70)
    run(capped, [Answer(capped, 5, 5), Answer(capped, 5, 65), Answer(capped, 5, 5)])


def test_the_reckoning_knows_what_keys_and_values_take(tiny: weights.Loaded) -> None:
    batch = batch_for(tiny)
    measure(batch)
    config = tiny.model.config
    per_layer = 2 * config.num_key_value_heads * config.head_dim * 4
    assert batch.rows.layer_bytes == [per_layer] * config.num_hidden_layers
    footprint = footprint_of(batch, 10**9, 10**6)
    groups = config.num_attention_heads // config.num_key_value_heads
    assert footprint.cell_bytes == per_layer * (config.num_hidden_layers * 3 // 2 + 1 + groups)


# -- a real model in a process of its own


def load(path: Path, **changes: Any) -> engine_pb2.Load:
    values = {"slots": 16, "context_tokens": 8192, "threads": 1} | changes
    cache = str(model_cache().parent / "torch")
    return engine_pb2.Load(engine="torch", model="smollm2", paths=[str(path)], cache_dir=cache, **values)


class Peak:
    """The most memory that a process was seen with, looked at with every event."""

    def __init__(self) -> None:
        self.heard = Heard()
        self.pid = 0
        self.bytes = 0

    def __call__(self, event: engine_pb2.EngineEvent) -> None:
        if self.pid:
            self.bytes = max(self.bytes, psutil.Process(self.pid).memory_info().rss)
        self.heard(event)


CAP_BYTES, CONTEXT_ASKED = 1350 * MEGABYTE, 8192
CHOICES, PROMPT_TOKENS, ANSWER_TOKENS = 32, 300, 8
KEYS_AND_VALUES_BYTES = 30 * 3 * 64 * 2 * 4  # of one token in all layers of SmolLM2-135M


def asked(prompt_tokens: int, choices: int, job: str) -> engine_pb2.EngineCommand:
    work = completion("", max_tokens=ANSWER_TOKENS, choices=choices)
    work.completion.prompt_ids.extend([1000 + index for index in range(prompt_tokens)])
    return start(work, job)


@pytest.mark.engine
@pytest.mark.timeout(600)
async def test_a_real_model_keeps_its_cap_while_more_is_asked_than_fits(smollm2_path: Path) -> None:
    """Above its weights it has little room: what does not fit there waits, and what never will is refused."""
    asked_for = load(smollm2_path, memory_bytes_max=CAP_BYTES)
    weights._converted(smollm2_path, Path(asked_for.cache_dir), CPU)  # once for all tests, not under the cap
    peak = Peak()
    host = await EngineHost.start(asked_for, peak)
    try:
        peak.pid = host.pid
        together = CHOICES * (PROMPT_TOKENS + ANSWER_TOKENS) * KEYS_AND_VALUES_BYTES
        assert host.loaded.memory_bytes + together > CAP_BYTES, "all at once would pass it"
        host.send(asked(PROMPT_TOKENS, CHOICES, "many"))
        assert (await peak.heard.ended("many")).HasField("done")
        texts = {peak.heard.text("many", choice=choice) for choice in range(CHOICES)}
        assert len(texts) == 1, "at temperature 0 each choice says the same, whenever its turn came"
        assert host.loaded.memory_bytes < peak.bytes <= CAP_BYTES
        assert CONTEXT_TOKENS_MIN <= host.loaded.context_tokens < CONTEXT_ASKED, (
            "what never fits is not offered"
        )
        host.send(asked(host.loaded.context_tokens, 1, "too long"))
        failure = (await peak.heard.ended("too long")).failed.failure
        assert (failure.code, failure.fault) == ("no_room", work_pb2.FAULT_NONE)
        assert "the memory that this worker may use holds" in failure.message
    finally:
        await host.close()


async def test_a_model_that_has_no_room_is_not_loaded_and_says_what_it_needs(tiny_paths: list[Path]) -> None:
    torch.set_num_threads(1)
    said: list[engine_pb2.EngineEvent] = []
    for cap, words in (
        (1_000, "of weights, and this worker may use 0.00 GB"),
        (10**6, "GB to answer 256 tokens"),
    ):
        asked_for = engine_pb2.Load(paths=[str(path) for path in tiny_paths], memory_bytes_max=cap)
        with pytest.raises(EngineError, match=words) as raised:
            await Torch(said.append).load(asked_for)
        assert raised.value.code == "no_room"
