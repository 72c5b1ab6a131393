"""Each family that the torch engine serves, with tiny random weights, against plain transformers in fp32."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from fixtures_engine import completion, hosted, start
from fixtures_tiny import FAMILIES, write_tiny

from potluck.shape import shape_of_config
from potluck.v1 import engine_pb2
from worker.engines import weights
from worker.engines.batch import Batch, Decoding, Embedding
from worker.engines.engine import EngineError
from worker.engines.pieces import Pieces
from worker.engines.rows import Rows
from worker.engines.sampling import Sampler
from worker.engines.stops import Stops

CPU = weights.Device("cpu", "float32")
NEAR = 1e-5
ENDS = {276, 278}  # <|endoftext|> and <|im_end|> of the tiny tokenizer
LENGTHS = (1, 3, 16, 17, 45, 70)  # of prompts; windows are of 16 tokens, pieces of 16


@dataclass
class Family:
    name: str
    paths: list[Path]
    loaded: weights.Loaded
    plain: Any

    def logits(self, ids: list[int]) -> Any:
        with torch.inference_mode():
            return self.plain(torch.tensor([ids])).logits[0].numpy()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("family")
    paths = write_tiny(folder, request.param)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Family(request.param, paths, weights.load_model(paths, folder, CPU), plain)


@dataclass
class Greedy:
    """One row: what it said, and the logits it was told."""

    prompt: list[int]
    tokens: int
    output: list[int] = field(default_factory=list)
    logits: list[Any] = field(default_factory=list)

    def member(self) -> Decoding:
        pieces = Pieces(choice=0, stops=Stops(()), tokens_max=self.tokens)
        return Decoding(self, list(self.prompt), pieces, Sampler(0, 0), len(self.prompt), self.heard)

    def heard(self, member: Decoding, logits: Any) -> bool:
        self.logits.append(logits)
        self.output.append(int(np.argmax(logits)))
        member.ids.append(self.output[-1])
        return len(self.output) < self.tokens


def prompt(length: int) -> list[int]:
    return [256 + (7 * length + index * index) % 20 for index in range(length)]


def test_pieces_and_batched_steps_give_the_logits_of_one_whole_pass(family: Family) -> None:
    """Prompts of all lengths in pieces of 16, joining one after the other, every step's logits of every row."""
    batch = Batch(family.loaded.model, Rows(family.plain.config.num_hidden_layers, 256), 8, 16)
    batch.clock = lambda: 0.0  # the length of pieces stays
    rows = [Greedy(prompt(length), 40) for length in LENGTHS]
    for row in rows:
        batch.add([row.member()])
        batch.step()
        batch.chunk_tokens = 16
    while not batch.idle:
        batch.step()
        batch.chunk_tokens = 16
    for row in rows:
        whole = family.logits(row.prompt + row.output)[len(row.prompt) - 1 : -1]
        scale = max(1.0, np.abs(whole).max())
        assert np.abs(np.stack(row.logits) - whole).max() / scale < NEAR
        assert np.abs(whole - whole[0]).max() > 1000 * NEAR, "what came before matters"


def test_embeddings_are_those_of_one_whole_pass(family: Family) -> None:
    batch = Batch(family.loaded.model, Rows(family.plain.config.num_hidden_layers, 256), 8, 16)
    got: dict[int, Any] = {}
    for length in LENGTHS:
        batch.add([Embedding(got, prompt(length), lambda m, vector: got.update({len(m.ids): vector}))])
    while not batch.idle:
        batch.step()
    for length in LENGTHS:
        with torch.inference_mode():
            hidden = family.plain.base_model(torch.tensor([prompt(length)])).last_hidden_state[0]
        np.testing.assert_allclose(got[length], hidden.mean(0).numpy(), atol=1e-4)


def test_the_pool_can_price_it(family: Family) -> None:
    """The shape read off config.json counts the weights that a token is multiplied with in the real model."""
    shape = shape_of_config(json.loads((family.paths[0].parent / "config.json").read_text()))
    config = family.plain.config
    per_layer = []
    for layer in family.plain.model.layers:
        weighed = 0
        for weight in layer.parameters():
            if weight.dim() == 3:  # all experts in one
                weighed += weight.numel() // weight.shape[0] * config.num_experts_per_tok
            elif weight.dim() == 2:
                weighed += weight.numel()
        per_layer.append(weighed)
    assert shape.head_parameters == family.plain.lm_head.weight.numel()
    assert shape.active_parameters == sum(per_layer) + shape.head_parameters
    assert shape.layers == len(per_layer)
    d_qk = getattr(config, "qk_head_dim", None) or config.head_dim
    assert shape.attention == 2 * shape.layers * 4 * (d_qk + (getattr(config, "v_head_dim", None) or d_qk))


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe", "mistral, sliding"])
async def test_the_engine_process_says_what_greedy_transformers_says(name: str, tmp_path: Path) -> None:
    paths = write_tiny(tmp_path, name)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    load = engine_pb2.Load(
        engine="torch", model="tiny", paths=[str(path) for path in paths], slots=4, context_tokens=256, threads=1
    )  # fmt: skip
    async with hosted(load) as (host, heard):
        assert "lora" in host.loaded.features
        for length in LENGTHS:
            work = completion("", max_tokens=30)
            work.completion.prompt_ids.extend(prompt(length))
            host.send(start(work, f"job{length}"))
        for length in LENGTHS:
            assert (await heard.ended(f"job{length}")).HasField("done")
            with torch.inference_mode():
                made = plain.generate(
                    torch.tensor([prompt(length)]), max_new_tokens=30, do_sample=False, pad_token_id=0
                )
            expected = made[0, length:].tolist()
            ends = [place for place, token in enumerate(expected) if token in ENDS]
            assert heard.ids(f"job{length}") == expected[: min(ends, default=len(expected))]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "gemma2"}, "torch does not serve gemma2; it serves .*deepseek_v3"),
        ({"model_type": "gpt2"}, "torch does not serve gpt2"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "full and sliding attention.*chunked"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    paths = write_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(EngineError, match=why):
        weights.load_model(paths, tmp_path, CPU)
