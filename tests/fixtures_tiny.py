"""A tiny random model whose tokens make trouble: half emoji, pieces of tags and of JSON. Loads in no time."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_model
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


def write_tiny(folder: Path, kind: str = "llama") -> list[Path]:
    """A folder as transformers writes them; returns its files."""
    tokenizer = tiny_tokenizer()
    end = tokenizer.token_to_id("<|im_end|>")
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        eos_token_id=end,
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
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
