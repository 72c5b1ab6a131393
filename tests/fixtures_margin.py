"""How narrowly the pool's sampler chose a token: where two texts may differ by rounding alone, and where not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fixtures_engine import hosted, start
from numpy.typing import NDArray

from potluck.v1 import engine_pb2, work_pb2
from worker.engines import noise, weights
from worker.engines.engine import sampling_of
from worker.engines.sampling import gumbel, hashes
from worker.engines.vocabulary import Vocabulary

MARGIN_MAX = 1e-3  # the design's: a narrower choice may fall otherwise in another run


def scores(logits: NDArray[np.float32], sampling: work_pb2.Sampling, choice: int, position: int) -> Any:
    """What the sampler takes the argmax of, for each id. Without top_k and top_p, which would cut first."""
    assert sampling.top_k == 0
    assert sampling.top_p == 1.0
    values = logits.astype(np.float64)
    if sampling.temperature <= 0:
        return values
    key = noise.stream(sampling.seed, choice, position)
    return values / sampling.temperature + gumbel(hashes(key, np.arange(values.size)))


def margin(values: Any) -> float:
    """How far the best is above the second."""
    second, best = np.partition(values, values.size - 2)[-2:]
    return float(best - second)


def first_difference(vocabulary: Vocabulary, ids: Sequence[int], text: str) -> int | None:
    """The index of the first id whose bytes are not those of the text at their place; None if all are."""
    data, at = text.encode(), 0
    for index, token_id in enumerate(ids):
        spelled = vocabulary.bytes_of(token_id, index)
        if data[at : at + len(spelled)] != spelled:
            return index
        at += len(spelled)
    return None if at == len(data) else len(ids)


class Judge:
    """The model in fp32, loaded when it is first asked, beside the engines that are judged."""

    def __init__(self, paths: Path | list[Path], cache: Path) -> None:
        self.paths, self.cache = ([paths] if isinstance(paths, Path) else paths), cache
        self._loaded: weights.Loaded | None = None

    @property
    def loaded(self) -> weights.Loaded:
        if self._loaded is None:
            torch.set_num_threads(1)
            self._loaded = weights.load_model(self.paths, self.cache, weights.Device("cpu", "float32"))
        return self._loaded

    def scores(
        self, prompt: Sequence[int], ids: Sequence[int], sampling: work_pb2.Sampling, choice: int = 0
    ) -> Any:
        """Of the token that follows `ids` of the output."""
        with torch.inference_mode():
            answer = self.loaded.model(input_ids=torch.tensor([[*prompt, *ids]]), logits_to_keep=1)
        return scores(answer.logits[0, -1].float().numpy(), sampling, choice, len(ids))

    def margin(
        self, prompt: Sequence[int], ids: Sequence[int], sampling: work_pb2.Sampling, choice: int = 0
    ) -> float:
        return margin(self.scores(prompt, ids, sampling, choice))

    async def difference(self, work: work_pb2.Work, text: str) -> float | None:
        """None if `text` is what an engine alone answers, else the margin of the first token that it has not."""
        load = engine_pb2.Load(
            engine="torch",
            model="judged",
            paths=[str(path) for path in self.paths],
            cache_dir=str(self.cache),
            threads=1,
        )
        async with hosted(load) as (host, heard):
            host.send(start(work))
            await heard.ended()
        ids, prompt = heard.ids(), heard.prompt().ids
        index = first_difference(self.loaded.vocabulary, ids, text)
        return None if index is None else self.margin(prompt, ids[:index], sampling_of(work))
