"""Which linear layers of a model may carry LoRA factors, and how wide they are.

From a catalogue's entry, a config.json or a GGUF header: the coordinator makes a fine-tune's first adapter,
and may have no file of the model. Named are those that each of the model's layers has, attention and the
dense feed forward; experts and routers never carry any (worker/engines/lora.py says why).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, StringConstraints

from potluck.gguf import read_header
from potluck.shape import DENSE_FAMILIES, MLA_FAMILIES, MOE_FAMILIES, Config, Dimension, ShapeError

LINEARS_MAX: Final = 16  # of one layer
_FUSED: Final = frozenset({"phi3"})  # query, key and value are one matrix there, gate and up another
_OF_GGUF: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Linear(BaseModel):
    """`module`: its place within a layer, as transformers names it. Its weight is [outputs, inputs]."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    module: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$", max_length=64)]
    inputs: Dimension
    outputs: Dimension

    @property
    def target(self) -> str:
        """The name by which members and peft choose it."""
        return self.module.rpartition(".")[2]


def linears_of_config(values: Mapping[str, Any]) -> tuple[Linear, ...]:
    """From a Hugging Face config.json. Raises ShapeError; an unknown family is never guessed at."""
    family = values.get("model_type")
    config = Config(values)
    hidden, heads = config("hidden_size"), config("num_attention_heads")
    if family in MLA_FAMILIES:
        return tuple(_latent(config, hidden, heads))
    if family not in DENSE_FAMILIES | MOE_FAMILIES:
        raise ShapeError(f"config: the family {str(family)[:40]!r} is not known")
    width = config("head_dim", default=max(1, hidden // heads))
    query, groups = heads * width, config("num_key_value_heads", default=heads) * width
    inner = 0 if family in MOE_FAMILIES else config("intermediate_size")
    if family in _FUSED:
        return (
            _linear("self_attn.qkv_proj", hidden, query + 2 * groups),
            _linear("self_attn.o_proj", query, hidden),
            _linear("mlp.gate_up_proj", hidden, 2 * inner),
            _linear("mlp.down_proj", inner, hidden),
        )
    attention = (
        _linear("self_attn.q_proj", hidden, query),
        _linear("self_attn.k_proj", hidden, groups),
        _linear("self_attn.v_proj", hidden, groups),
        _linear("self_attn.o_proj", query, hidden),
    )
    return attention + _feed_forward(hidden, inner)


def _feed_forward(hidden: int, inner: int) -> tuple[Linear, ...]:
    if not inner:
        return ()
    return (
        _linear("mlp.gate_proj", hidden, inner),
        _linear("mlp.up_proj", hidden, inner),
        _linear("mlp.down_proj", inner, hidden),
    )


def _latent(config: Config, hidden: int, heads: int) -> Iterable[Linear]:
    """Multi-head latent attention; its layers differ in the feed forward."""
    d_rope, d_nope, d_v = (config(f"{name}_head_dim") for name in ("qk_rope", "qk_nope", "v"))
    query, kv_rank = heads * (d_nope + d_rope), config("kv_lora_rank")
    q_rank = config("q_lora_rank", default=0, least=0)
    if q_rank:
        yield _linear("self_attn.q_a_proj", hidden, q_rank)
        yield _linear("self_attn.q_b_proj", q_rank, query)
    else:
        yield _linear("self_attn.q_proj", hidden, query)
    yield _linear("self_attn.kv_a_proj_with_mqa", hidden, kv_rank + d_rope)
    yield _linear("self_attn.kv_b_proj", kv_rank, heads * (d_nope + d_v))
    yield _linear("self_attn.o_proj", heads * d_v, hidden)


def linears_of_gguf(path: Path) -> tuple[Linear, ...]:
    """From the tensors themselves. Raises GgufError for a broken file, ShapeError if it says too little."""
    header = read_header(path)
    family = header.metadata.get("general.architecture")
    layers = header.metadata.get(f"{family}.block_count")
    if not isinstance(layers, int) or layers < 1:
        raise ShapeError(f"{path.name} does not say how many layers it has")
    found: dict[str, list[tuple[int, ...]]] = {name: [] for name in _OF_GGUF}
    for name, dimensions in header.tensors.items():
        words = name.split(".")
        if words[0] == "blk" and words[-1] == "weight" and words[2] in found:
            found[words[2]].append(dimensions)
    linears = tuple(
        _linear(_OF_GGUF[name], *sizes[0])
        for name, sizes in found.items()
        if len(sizes) == layers and len(set(sizes)) == 1 and len(sizes[0]) == 2
    )
    if not any(linear.target == "q_proj" for linear in linears):
        raise ShapeError(f"{path.name}: where the linear layers of {str(family)[:40]!r} are is not known")
    return linears


def _linear(module: str, inputs: int, outputs: int) -> Linear:
    return Linear(module=module, inputs=inputs, outputs=outputs)
