"""What pricing needs to know of a model, read off its own configuration or its GGUF header.

Definition (design, section 6): N counts the weights of matrices that a token is multiplied with: attention,
feed forward, routers, of experts only the active ones, and the LM head, once, also where it shares its table
with the embedding. Embedding tables, norms, biases and layers that only train (DeepSeek's multi-token
prediction) do not count.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from potluck.gguf import read_header

DIMENSION_MAX: Final = 1 << 24
LAYERS_MAX: Final = 4_096
PARAMETERS_MAX: Final = 1 << 50

Dimension = Annotated[int, Field(ge=1, le=DIMENSION_MAX)]

# One attention and one gated feed-forward block a layer, in Llama's names and proportions.
DENSE_FAMILIES: Final = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "olmo2",
})  # fmt: skip
MOE_FAMILIES: Final = frozenset({"mixtral", "qwen2_moe", "qwen3_moe"})
MLA_FAMILIES: Final = frozenset({"deepseek_v2", "deepseek_v3"})


class ShapeError(ValueError):
    """The configuration says too little, or is of a family that is not known; the message says which."""


class ModelShape(BaseModel):
    """Integers only. Sliding windows do not lower `attention`: it is the price of the full context."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    active_parameters: Annotated[int, Field(ge=1, le=PARAMETERS_MAX)]  # N
    head_parameters: Annotated[int, Field(ge=0, le=PARAMETERS_MAX)]  # H, part of N
    layers: Annotated[int, Field(ge=1, le=LAYERS_MAX)]
    heads: Dimension
    d_qk: Dimension
    d_v: Dimension

    @property
    def attention(self) -> int:
        """a: FLOPs per pair of positions."""
        return 2 * self.layers * self.heads * (self.d_qk + self.d_v)


class Config:
    """A config.json from which only sane integers come out."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __call__(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """The first of these names that is set. Raises ShapeError."""
        for name in names:
            value = self._values.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= DIMENSION_MAX:
                raise ShapeError(f"config: {name} is {str(value)[:40]!r}, not a whole number from {least}")
            return value
        if default is None:
            raise ShapeError(f"config: {' or '.join(names)} is missing")
        return default

    def layer_list(self, name: str) -> set[int]:
        value = self._values.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
            raise ShapeError(f"config: {name} is no list of layers")
        return set(value)


def shape_of_config(values: Mapping[str, Any]) -> ModelShape:
    """From a Hugging Face config.json. Raises ShapeError; an unknown family is never guessed at."""
    family = values.get("model_type")
    config = Config(values)
    if family in MLA_FAMILIES:
        return _mla(config)
    if family not in DENSE_FAMILIES | MOE_FAMILIES:
        known = ", ".join(sorted(DENSE_FAMILIES | MOE_FAMILIES | MLA_FAMILIES))
        raise ShapeError(f"config: the family {str(family)[:40]!r} is not known; known are {known}")
    hidden, layers, heads = config("hidden_size"), _layers(config), config("num_attention_heads")
    groups = config("num_key_value_heads", default=heads)
    d_head = config("head_dim", default=max(1, hidden // heads))
    attention = 2 * hidden * d_head * (heads + groups)  # q and o; k and v
    if family in MOE_FAMILIES:
        feed_forward = _experts(config, str(family), hidden, layers)
    else:
        feed_forward = layers * 3 * hidden * config("intermediate_size")
    head = config("vocab_size") * hidden
    return ModelShape(
        active_parameters=layers * attention + feed_forward + head,
        head_parameters=head,
        layers=layers,
        heads=heads,
        d_qk=d_head,
        d_v=d_head,
    )


def _layers(config: Config) -> int:
    layers = config("num_hidden_layers")
    if layers > LAYERS_MAX:
        raise ShapeError(f"config: {layers} layers; {LAYERS_MAX} are allowed")
    return layers


def _experts(config: Config, family: str, hidden: int, layers: int) -> int:
    """Active feed-forward weights of all layers of a mixture with softmax routing."""
    if family == "mixtral":
        experts = config("num_local_experts")
        return layers * hidden * (experts + config("num_experts_per_tok") * 3 * config("intermediate_size"))
    step = config("decoder_sparse_step", default=1)
    plain = config.layer_list("mlp_only_layers")
    sparse = sum(1 for layer in range(layers) if layer not in plain and (layer + 1) % step == 0)
    experts = config("num_experts", "num_local_experts")  # transformers 5 writes the second name
    each = experts + config("num_experts_per_tok") * 3 * config("moe_intermediate_size")
    if family == "qwen2_moe":  # a shared expert, and a gate of one row for it
        each += 3 * config("shared_expert_intermediate_size") + 1
    return hidden * (sparse * each + (layers - sparse) * 3 * config("intermediate_size"))


def _mla(config: Config) -> ModelShape:
    """Multi-head latent attention (arXiv 2405.04434), with shared and routed experts."""
    hidden, layers, heads = config("hidden_size"), _layers(config), config("num_attention_heads")
    d_rope, d_v = config("qk_rope_head_dim"), config("v_head_dim")
    d_qk = config("qk_nope_head_dim") + d_rope
    q_rank, kv_rank = config("q_lora_rank", default=0, least=0), config("kv_lora_rank")
    query = q_rank * (hidden + heads * d_qk) if q_rank else hidden * heads * d_qk
    key_value = hidden * (kv_rank + d_rope) + kv_rank * heads * (d_qk - d_rope + d_v)
    attention = query + key_value + heads * d_v * hidden
    dense = min(layers, config("first_k_dense_replace", default=0, least=0))
    experts = config("num_experts_per_tok") + config("n_shared_experts", default=0, least=0)
    each = config("n_routed_experts") + experts * 3 * config("moe_intermediate_size")
    head = config("vocab_size") * hidden
    feed_forward = hidden * ((layers - dense) * each + dense * 3 * config("intermediate_size"))
    return ModelShape(
        active_parameters=layers * attention + feed_forward + head,
        head_parameters=head,
        layers=layers,
        heads=heads,
        d_qk=d_qk,
        d_v=d_v,
    )


def shape_of_gguf(path: Path) -> ModelShape:
    """From the tensors themselves. Raises GgufError for a broken file, ShapeError if it says too little."""
    header = read_header(path)
    family = header.metadata.get("general.architecture")
    facts = {
        key.removeprefix(f"{family}."): _same(value)
        for key, value in header.metadata.items()
        if key.startswith(f"{family}.")
    }
    config = Config(facts)
    layers = config("block_count") - config("nextn_predict_layers", default=0, least=0)
    heads = config("attention.head_count")
    d_head = max(1, config("embedding_length") // heads)
    active = 0
    for name, dimensions in header.tensors.items():
        block = name.split(".")[1] if name.startswith("blk.") else ""
        if len(dimensions) < 2 or name == "token_embd.weight" or (block.isdigit() and int(block) >= layers):
            continue
        size = _product(dimensions)
        if "_exps" in name:
            size = size * config("expert_used_count") // config("expert_count")
        active += size
    table = header.tensors.get("output.weight", header.tensors.get("token_embd.weight"))
    if table is None:
        raise ShapeError(f"{path.name} has neither an embedding table nor an LM head")
    head = _product(table)
    return ModelShape(
        active_parameters=active + (0 if "output.weight" in header.tensors else head),
        head_parameters=head,
        layers=layers,
        heads=heads,
        # Files with latent attention give the compressed width in key_length and the real one apart.
        d_qk=config("attention.key_length_mla", "attention.key_length", default=d_head),
        d_v=config("attention.value_length_mla", "attention.value_length", default=d_head),
    )


def _same(value: Any) -> Any:
    """One value for each layer, all the same, is that value."""
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        return value[0]
    return value


def _product(dimensions: tuple[int, ...]) -> int:
    size = 1
    for dimension in dimensions:
        size *= dimension
    return size
