"""One micro-batch through a model: forward, and backward where it is learned from."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from potluck.v1 import work_pb2
from worker.training import attention
from worker.training.adapter import Adapter
from worker.training.head import head_of, losses
from worker.training.losses import Sums, counted, log_likelihoods, preferences
from worker.training.packing import Row, Unit
from worker.training.plan import DPO
from worker.training.precision import Precision

_PROBE_TOKENS: Final = 64


class Passes:
    """Of one model with its adapter. It is in the mode for inference throughout: nothing is dropped out."""

    def __init__(
        self, model: Any, adapter: Adapter, plan: work_pb2.TrainingPlan, precision: Precision
    ) -> None:
        self._model, self._adapter, self._plan, self._precision = model, adapter, plan, precision
        self._layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
        self._head = head_of(model)
        attention.use(model)
        if precision.autocast:
            adapter.in_own_dtype()

    def learn(self, units: Sequence[Unit], count: int, scale: float, *, checkpoints: bool) -> Sums:
        """Adds to the adapter's gradient this batch's part of the loss, which is a mean over `count`."""
        with self._checkpointing(on=checkpoints):
            loss, sums = self._loss(units)
            (loss * (scale / count)).backward()
        return sums

    def judge(self, units: Sequence[Unit]) -> Sums:
        with torch.no_grad():
            return self._loss(units)[1]

    def _loss(self, units: Sequence[Unit]) -> tuple[Any, Sums]:
        row = Row.of(units)
        if self._plan.method != DPO:
            each, right = self._losses(row)
            loss = each.sum()
        else:
            with torch.no_grad(), self._adapter.off():
                reference = log_likelihoods(self._losses(row)[0], row)
            policy = log_likelihoods(self._losses(row)[0], row)
            loss, right = preferences(policy, reference, self._plan.dpo_beta)
        return loss, counted(units, row, float(loss.detach()), right, pairs=self._plan.method == DPO)

    def _losses(self, row: Row) -> tuple[Any, int]:
        """Of each target; and how many were the likeliest token."""
        hidden = self._hidden(row)
        with self._autocast():
            targets = torch.tensor(row.targets, device=self._model.device)
            return losses(hidden, self._head, targets, self._model.config.vocab_size)

    def _hidden(self, row: Row) -> Any:
        """[targets, width]: at the places alone that a target is predicted from."""
        device = self._model.device
        with self._autocast():
            output = self._model.base_model(
                input_ids=torch.tensor([row.ids], device=device),
                position_ids=torch.tensor([row.positions], device=device),
                bounds=row.bounds,
                use_cache=False,
            )
        return output.last_hidden_state[0, torch.tensor(row.places, device=device)]

    def _autocast(self) -> Any:
        name, wanted = self._model.device.type, self._precision.autocast
        dtype = getattr(torch, wanted) if wanted else torch.bfloat16  # which is not used then
        return torch.autocast(name, dtype=dtype, enabled=bool(wanted))

    @contextmanager
    def _checkpointing(self, *, on: bool) -> Iterator[None]:
        """Each layer keeps its input alone and is computed again in the backward pass."""
        again: Callable[..., Any] = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        for layer in self._layers:
            layer.gradient_checkpointing = layer.training = on
            layer._gradient_checkpointing_func = again  # noqa: SLF001 -- transformers' way in
        try:
            yield
        finally:
            for layer in self._layers:
                layer.gradient_checkpointing = layer.training = False

    def kept_bytes(self) -> int:
        """What a forward pass keeps for the backward pass, for each token: measured on two short rows."""
        few, more = (self._kept(tokens) for tokens in (_PROBE_TOKENS, 2 * _PROBE_TOKENS))
        return max(1, (more - few) // _PROBE_TOKENS)

    def _kept(self, tokens: int) -> int:
        places = list(range(tokens))
        row = Row([0] * tokens, places, [(0, tokens)], places[:1], [0], [1])
        weights = {weight.untyped_storage().data_ptr() for weight in self._model.parameters()}
        found: dict[int, Any] = {}  # storages, held so that none takes another's place

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self._hidden(row)
        return sum(storage.nbytes() for storage in found.values())
