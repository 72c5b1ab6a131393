"""A tiny random model whose tokens make trouble: half emoji, pieces of tags and of JSON. Loads in no time."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from potluck.vocabulary import byte_alphabet

WORDS = [
    *(
        " a",
        " b",
        "th",
        "ink",
        "</",
        ">",
        "</think>",
        '{"',
        '":',
        '"}',
        "[1,",
        "]",
        "\n",
        "<",
        "nk>",
        "é",
        "🎉",
    ),
    *(" c", "d", " e", "fg", "###", "#", " stop", "st", "op"),
]
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


MOE: Final[dict[str, Any]] = {"moe_intermediate_size": 24, "num_experts_per_tok": 2, "norm_topk_prob": True}
MLA: Final[dict[str, Any]] = MOE | {
    "num_hidden_layers": 3, "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "head_dim": 4,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "n_routed_experts": 8, "n_shared_experts": 1,
    "n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy", "first_k_dense_replace": 1,
}  # fmt: skip
SLIDING: Final[dict[str, Any]] = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}

# What the real configurations of these families have beside the common: experts, latent attention, windows.
FAMILIES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, sliding": ("mistral", {"sliding_window": 16}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", {}),
    "qwen2, sliding": ("qwen2", SLIDING),
    "qwen2_moe": ("qwen2_moe", MOE | {"num_experts": 6, "shared_expert_intermediate_size": 40}),
    "qwen3": ("qwen3", {}),
    "qwen3, sliding": ("qwen3", SLIDING),
    "qwen3_moe": ("qwen3_moe", MOE | {"num_experts": 6}),
    "deepseek_v2": ("deepseek_v2", MLA),
    "deepseek_v3": ("deepseek_v3", MLA),
    "gemma": ("gemma", {}),
    "gemma3_text": ("gemma3_text", {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    "phi3": ("phi3", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "olmo2": ("olmo2", {}),
}  # fmt: skip


def tiny_tokenizer() -> Tokenizer:
    alphabet = byte_alphabet()
    vocabulary = {alphabet[byte]: byte for byte in range(256)}
    for word in WORDS:
        vocabulary.setdefault("".join(alphabet[byte] for byte in word.encode()), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    return tokenizer


def write_tiny(folder: Path, family: str = "llama") -> list[Path]:
    """A folder as transformers writes them, of one of FAMILIES; returns its files."""
    import torch  # here, because every run of any test imports this file
    import transformers
    from safetensors.torch import save_model

    kind, special = FAMILIES[family]
    tokenizer = tiny_tokenizer()
    end = tokenizer.token_to_id("<|im_end|>")
    common: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 512, "eos_token_id": end, "bos_token_id": None, "pad_token_id": None,
        "tie_word_embeddings": False,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(kind, **common | special)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.3)  # what came before must matter
        torch.nn.init.normal_(model.get_input_embeddings().weight)
        head = torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
        jumble = [byte for byte in range(256) if byte not in "🎉".encode()]
        head[jumble] = 0.0  # rarely chosen: text rather than noise
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": CHAT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def tiny_paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_tiny(tmp_path_factory.mktemp("tiny"))
