"""What a batch costs on this machine: prefill and decode tokens/s of one stream, and its bytes."""

import time
from typing import Any

from worker.engines.batch import CHUNK_S, CHUNK_TOKENS_MAX, CHUNK_TOKENS_MIN, Batch, Decoding
from worker.engines.footprint import Footprint, Shape
from worker.engines.masks import layer_kinds
from worker.engines.pieces import Pieces
from worker.engines.sampling import Sampler
from worker.engines.stops import Stops

MEASURE_S_MAX = 0.4  # for each of prefill and decode


def measure(batch: Batch) -> tuple[float, float]:
    """(prefill, decode) in tokens/s; the batch then begins with pieces for that speed.

    The first steps also warm up.
    """

    def run(tokens: int, until_s: float, steps_max: int) -> tuple[int, float]:
        left = [steps_max]

        def heard(member: Decoding, _: Any) -> bool:
            member.ids.append(1)
            left[0] -= 1
            return left[0] > 0 and time.monotonic() - begun < until_s

        pieces = Pieces(choice=0, stops=Stops(()), tokens_max=steps_max)
        batch.add([Decoding(None, [1] * tokens, pieces, Sampler(0, 0), tokens, heard)])
        begun = time.monotonic()
        while not batch.idle:
            batch.step()
        return steps_max - left[0], time.monotonic() - begun

    room = batch.rows.tokens_max - 2
    run(1, 0.0, 1)
    steps, seconds = run(1, MEASURE_S_MAX, room)
    decode = steps / seconds
    batch.chunk_tokens = CHUNK_TOKENS_MAX
    first = min(CHUNK_TOKENS_MIN, room)
    rate = first / run(first, 0.0, 1)[1]
    more = max(first, min(CHUNK_TOKENS_MAX, room, int(rate * MEASURE_S_MAX)))
    prefill = more / run(more, 0.0, 1)[1]
    batch.chunk_tokens = max(CHUNK_TOKENS_MIN, min(CHUNK_TOKENS_MAX, int(prefill * CHUNK_S)))
    return prefill, decode


def footprint_of(batch: Batch, cap_bytes: int, used_bytes: int) -> Footprint:
    """Of a batch that has been measured and is idle; `used_bytes` by then. `cap_bytes` 0: no cap."""
    model = batch.model
    shape = Shape.of(
        model.config,
        batch.rows.layer_bytes,
        model.dtype.itemsize,
        kinds=len(layer_kinds(model.config)),
        scores=batch.rows.scores,
    )
    step = {"tokens": CHUNK_TOKENS_MAX, "rows": batch.rows_max}
    return Footprint.of(shape, cap_bytes=cap_bytes, used_bytes=used_bytes, **step)
