"""A model of this worker as the coordinator hears of it."""

import asyncio
from collections.abc import Collection
from typing import Final

from potluck.v1 import session_pb2
from worker.messages import FINETUNE, Role
from worker.service import LORA, ModelService

COMING: Final = frozenset({session_pb2.MODEL_STATE_DOWNLOADING, session_pb2.MODEL_STATE_LOADING})


def served_model(service: ModelService, beside: Collection[Role] = ()) -> session_pb2.ServedModel:
    """`beside`: what engines beside this one may do for the model."""
    entry, loaded, speed = service.choice.entry, service.loaded, service.speed.now
    shared = service.around.settings.sharing.kinds
    kinds = list(loaded.kinds) or [str(kind) for kind in entry.kinds]
    kinds += [FINETUNE] * (Role.TRAIN in beside and FINETUNE not in kinds)
    return session_pb2.ServedModel(
        name=entry.name,
        engine=service.choice.engine,
        kinds=[kind for kind in kinds if not shared or kind in shared],
        state=service.state,
        bytes_done=service.bytes_done,
        bytes_total=service.bytes_total,
        numerics=loaded.numerics,
        sampler=loaded.sampler,
        prefill_tokens_per_s=speed.prefill,
        decode_tokens_per_s=speed.decode,
        slots=service.slots(),
        context_tokens=loaded.context_tokens or entry.context_tokens,
        features=_features(service, beside),
        why=service.why,
        eta_ms=_eta_ms(service),
    )


def _features(service: ModelService, beside: Collection[Role]) -> list[str]:
    """None before the engine was loaded once: what it can do is not known then, and it may be tried."""
    known = list(service.loaded.features)
    adapts = Role.ADAPT in beside and (known or service.state == session_pb2.MODEL_STATE_READY)
    return [*known, *([LORA] if adapts and LORA not in known else [])]


def _eta_ms(service: ModelService) -> int:
    """0: unknown."""
    if service.state not in COMING:
        return 0
    now = asyncio.get_running_loop().time()
    return service.pace.left_ms(service.bytes_done, service.bytes_total, now)
