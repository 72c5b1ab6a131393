"""The loss of each target from the hidden states that predict them, a piece of the vocabulary's matrix at a
time.

Logits of all targets at once would often be the largest thing in memory. Since the head is not trained, and
each hidden state meets its own target alone, its gradient can be computed as soon as its logits are there;
then they may go (the idea of fused linear cross-entropy, arXiv 2410.10989).
"""

from collections.abc import Callable
from typing import Any, Final

import torch

CHUNK_BYTES_MAX: Final = {"cpu": 32 << 20, "mps": 64 << 20, "cuda": 256 << 20}  # of logits in float32
_COPIES: Final = 4  # logits in their own type, in float32, their exponentials and their gradient


def chunk_bytes(device: str) -> int:
    """What is there at once, at the most."""
    return _COPIES * CHUNK_BYTES_MAX[device]


def head_of(model: Any) -> Callable[[Any], Any]:
    """Hidden states to logits, as the model's own forward pass has it at its end."""
    linear: Callable[[Any], Any] = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return linear if cap is None else lambda hidden: torch.tanh(linear(hidden) / cap) * cap


def losses(hidden: Any, head: Callable[[Any], Any], targets: Any, vocabulary: int) -> tuple[Any, int]:
    """[targets] of cross-entropies in float32, and how many targets were the likeliest token."""
    rows = max(1, CHUNK_BYTES_MAX[hidden.device.type] // (4 * vocabulary))
    each, right = _Losses.apply(hidden, targets, head, rows)
    return each, int(right)


class _Losses(torch.autograd.Function):  # type: ignore[misc]  # torch has no types here
    @staticmethod
    def forward(
        context: Any, hidden: Any, targets: Any, head: Callable[[Any], Any], rows: int
    ) -> tuple[Any, Any]:
        wanted = context.needs_input_grad[0]
        each = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        right = torch.zeros((), dtype=torch.int64, device=hidden.device)
        gradient = torch.empty_like(hidden) if wanted else None
        for begin in range(0, len(targets), rows):
            part = slice(begin, begin + rows)
            with torch.set_grad_enabled(wanted):
                states = hidden[part].detach().requires_grad_(wanted)
                logits = head(states)
                loss = torch.nn.functional.cross_entropy(logits.float(), targets[part], reduction="none")
                if gradient is not None:
                    (gradient[part],) = torch.autograd.grad(loss.sum(), states)
            each[part] = loss.detach()
            right += (logits.detach().argmax(dim=-1) == targets[part]).sum()
        context.gradient = gradient
        context.mark_non_differentiable(right)
        return each, right

    @staticmethod
    def backward(context: Any, of_each: Any, _: Any) -> tuple[Any, None, None, None]:
        """Each hidden state moves its own loss alone."""
        return context.gradient * of_each[:, None].to(context.gradient.dtype), None, None, None
