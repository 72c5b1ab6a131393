"""The adapter that a fine-tune begins with: the tensors that peft makes of the same model, its numbers from the seed."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_tiny import FAMILIES, write_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from potluck import lora, tensors
from potluck.catalogue import Catalogue, CatalogueError, File, LocalPath, ModelEntry
from potluck.linears import Linear, linears_of_config, linears_of_gguf
from potluck.lora import LoraError
from potluck.shape import ShapeError

DIGEST_OF_SEED_7 = "95e1b37de64e49fb4cad6e458d4796b27aed9f077f50b48ee74871a3ee976b5d"
CHECKED = settings(max_examples=200, deadline=None, derandomize=True)
TWO = (
    Linear(module="self_attn.q_proj", inputs=8, outputs=6),
    Linear(module="mlp.down_proj", inputs=12, outputs=8),
)
floats = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, min_side=0),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_its_tensors_are_those_of_peft(tmp_path: Path, family: str) -> None:
    """Names and shapes, for every family that can be served; the coordinator had the config.json alone."""
    import peft
    import torch
    import transformers
    from peft.utils import get_peft_model_state_dict

    write_tiny(tmp_path, family)
    values = json.loads((tmp_path / "config.json").read_text())
    linears = linears_of_config(values)
    of = lora.shapes(linears, values["num_hidden_layers"], 4)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    modules = "|".join(linear.module.replace(".", r"\.") for linear in linears)
    config = peft.LoraConfig(r=4, target_modules=rf".*layers\.\d+\.({modules})", task_type="CAUSAL_LM")
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        model = peft.get_peft_model(plain, config)
        theirs = get_peft_model_state_dict(model)
    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == of
    assert lora.parameters(of) == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def test_peft_and_the_engine_read_what_the_coordinator_wrote(tmp_path: Path) -> None:
    import peft
    import torch
    import transformers
    from peft.utils import get_peft_model_state_dict

    write_tiny(tmp_path)
    linears = linears_of_config(json.loads((tmp_path / "config.json").read_text()))
    of = lora.shapes(linears, 2, 3)
    made = {name: np.random.default_rng(5).normal(size=shape).astype("<f4") for name, shape in of.items()}
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / lora.WEIGHTS_NAME).write_bytes(lora.encode(made))
    targets = lora.targets_of(linears)
    config = lora.config_json(rank=3, alpha=6.0, targets=targets, base=str(tmp_path))
    (folder / lora.CONFIG_NAME).write_bytes(config)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        model = peft.PeftModel.from_pretrained(plain, str(folder))
        for name, tensor in get_peft_model_state_dict(model).items():
            np.testing.assert_array_equal(tensor.numpy(), made[name])
    assert model.peft_config["default"].lora_alpha == 6
    from worker.engines.lora import _config

    assert _config(folder / lora.CONFIG_NAME) == (3, 2.0)


def test_it_begins_as_peft_has_it_and_as_the_base() -> None:
    """A uniform within 1 / sqrt(inputs) and of that spread, B zero."""
    wide = (Linear(module="self_attn.q_proj", inputs=400, outputs=50),)
    made = lora.initial(lora.shapes(wide, 3, 16), seed=11)
    down = np.stack([array for name, array in made.items() if ".lora_A." in name])
    assert down.shape == (3, 16, 400)
    assert down.dtype == np.float32
    assert -0.05 <= down.min() < -0.0499
    assert 0.0499 < down.max() < 0.05
    np.testing.assert_allclose(down.std(), 0.05 / 3**0.5, rtol=0.02)
    np.testing.assert_allclose(down.mean(), 0, atol=0.001)
    assert not any(array.any() for name, array in made.items() if ".lora_B." in name)


def test_the_same_seed_is_the_same_bytes_everywhere() -> None:
    """The digest was written down once: another numpy or processor must not change it."""
    of = lora.shapes(TWO, 2, 4)
    data = lora.encode(lora.initial(of, seed=7))
    assert hashlib.sha256(data).hexdigest() == DIGEST_OF_SEED_7
    assert data == lora.encode(lora.initial(of, seed=7))
    assert data != lora.encode(lora.initial(of, seed=8))


def test_each_tensor_has_its_own_numbers() -> None:
    made = lora.initial(lora.shapes(TWO, 2, 4), seed=7)
    down = [array.ravel()[:8].tobytes() for name, array in made.items() if ".lora_A." in name]
    assert len(set(down)) == 4


def test_targets_are_chosen_by_name() -> None:
    few = lora.shapes(TWO, 1, 2, ["down_proj"])
    place = "base_model.model.model.layers.0.mlp.down_proj"
    assert few == {f"{place}.lora_A.weight": (2, 12), f"{place}.lora_B.weight": (8, 2)}
    assert lora.parameters(few) == 2 * 12 + 8 * 2
    assert lora.targets_of(TWO) == ("q_proj", "down_proj")
    with pytest.raises(LoraError, match="lm_head is no target of this model; it has q_proj, down_proj"):
        lora.shapes(TWO, 1, 2, ["q_proj", "lm_head"])
    with pytest.raises(LoraError, match="does not say which of its layers"):
        lora.shapes((), 1, 2)


@pytest.mark.parametrize("rank", [0, 257, 10_000])
def test_a_rank_has_limits(rank: int) -> None:
    with pytest.raises(LoraError, match=f"the rank is {rank}; 1 to 256"):
        lora.shapes(TWO, 1, rank)


def test_it_comes_back_as_it_was_sent() -> None:
    of = lora.shapes(TWO, 2, 4)
    made = lora.initial(of, seed=1)
    for name, array in lora.decode(lora.encode(made), of).items():
        np.testing.assert_array_equal(array, made[name])
    half = lora.encode(made, bfloat16=True)
    assert len(half) < len(lora.encode(made)) - 2 * lora.parameters(of) + 16
    for name, array in lora.decode(half, of).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, tensors.rounded(made[name]))
        np.testing.assert_allclose(array, made[name], rtol=2**-8)


def changed(**changes: Any) -> bytes:
    made: dict[str, Any] = lora.initial(lora.shapes(TWO, 1, 2), seed=1)
    for name, change in changes.items():
        whole = next(key for key in made if name.replace("_at_", "_proj.lora_") in key)
        made[whole] = change(made[whole])
    return tensors.write(made)


def extra() -> bytes:
    made = lora.initial(lora.shapes(TWO, 1, 2), seed=1)
    return tensors.write(made | {"base_model.model.lm_head.lora_A.weight": np.zeros((2, 2), "<f4")})


BAD = {
    "nothing": (b"", "no safetensors"),
    "noise": (b"PK\x03\x04" * 9, "no safetensors"),
    "cut off": (lora.encode(lora.initial(lora.shapes(TWO, 1, 2), seed=1))[:-4], "no safetensors"),
    "no weights": (tensors.write({}), "has no weights"),
    "another rank": (lora.encode(lora.initial(lora.shapes(TWO, 1, 3), seed=1)), r"is \[3, 12\], and \[2, 12\] is needed"),
    "more layers": (lora.encode(lora.initial(lora.shapes(TWO, 2, 2), seed=1)), "belongs to no layer"),
    "fewer targets": (lora.encode(lora.initial(lora.shapes(TWO[:1], 1, 2), seed=1)), r"down_proj.* is missing"),
    "another module": (extra(), "lm_head.lora_A.weight belongs to no layer"),
    "not finite": (changed(q_at_A=lambda a: np.full_like(a, np.nan)), r"q_proj.lora_A.* are not all finite"),
    "infinite": (changed(q_at_B=lambda a: np.full_like(a, -np.inf)), "are not all finite"),
    "whole numbers": (changed(q_at_A=lambda a: a.astype("i1")), "is I8 of 2 dimensions"),
    "a list": (changed(q_at_A=lambda a: a.ravel()), "of 1 dimensions"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "why"), BAD.values(), ids=BAD)
def test_what_does_not_fit_the_model_is_refused_with_a_sentence(data: bytes, why: str) -> None:
    with pytest.raises(LoraError, match=why):
        lora.decode(data, lora.shapes(TWO, 1, 2))


def test_names_of_others_are_refused_where_the_model_is_not_known() -> None:
    with pytest.raises(LoraError, match="evil is no LoRA weight"):
        lora.decode(tensors.write({"evil": np.zeros((2, 2), "<f4")}))


@given(floats)
@CHECKED
def test_tensors_come_back_bit_for_bit(array: Any) -> None:
    got, kinds = tensors.read(
        tensors.write({"a": array, "b": np.isnan(array).astype("<f2"), "c": np.zeros(3, "i1")})
    )
    assert got["a"].tobytes() == array.tobytes()
    assert got["a"].shape == array.shape
    assert kinds == {"a": "F32", "b": "F16", "c": "I8"}


@given(floats)
@CHECKED
def test_bfloat16_is_rounded_as_torch_does(array: Any) -> None:
    import torch

    theirs = torch.from_numpy(array.copy()).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(tensors.rounded(array), theirs)


def test_the_safetensors_library_reads_what_is_written() -> None:
    import torch
    from safetensors.torch import load

    array = np.arange(6, dtype="<f4").reshape(2, 3) / 7
    read = load(tensors.write({"b": array, "a": array[:, :1]}, bfloat16=True))
    assert read["b"].dtype == torch.bfloat16
    np.testing.assert_array_equal(read["b"].float().numpy(), tensors.rounded(array))
    assert read["a"].shape == (2, 1)


# -- how the coordinator learns the shapes


def entry_of(**changes: Any) -> ModelEntry:
    entry = Catalogue.builtin().get("smollm2-135m-instruct")
    assert entry is not None
    return entry.model_copy(update=changes)


@pytest.mark.engine
def test_the_default_models_entry_says_what_its_file_does(smollm2_path: Path) -> None:
    entry = entry_of()
    assert set(linears_of_gguf(smollm2_path)) == set(entry.linears)
    assert set(lora.linears_of(entry_of(linears=()), lambda _: smollm2_path)) == set(entry.linears)
    per_layer = 16 * sum(linear.inputs + linear.outputs for linear in entry.linears)
    assert lora.parameters(lora.shapes(entry.linears, entry.shape.layers, 16)) == 30 * per_layer


def test_the_entry_alone_is_enough_and_a_config_file_too(tmp_path: Path) -> None:
    def unasked(file: File) -> Path:
        raise AssertionError(file)

    assert lora.linears_of(entry_of(), unasked) == entry_of().linears
    write_tiny(tmp_path)
    files = tuple(
        File(name=name, sha256="0" * 64, size_bytes=9, source=LocalPath(path=name))
        for name in ("model.safetensors", "config.json")
    )
    variant = entry_of().variants[0].model_copy(update={"format": "safetensors", "files": files})
    entry = entry_of(linears=(), variants=(variant,))
    found = lora.linears_of(entry, lambda file: tmp_path / file.name)
    assert {linear.target for linear in found} == {linear.target for linear in entry_of().linears}
    assert found != entry_of().linears
    assert lora.linears_of(entry, lambda _: None) == ()
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert lora.linears_of(entry, lambda file: tmp_path / file.name) == ()


def test_an_entry_names_each_linear_once() -> None:
    twice = [{"module": f"{block}.q_proj", "inputs": 1, "outputs": 1} for block in ("a", "b")]
    document = json.loads(entry_of().model_dump_json()) | {"linears": twice}
    with pytest.raises(CatalogueError, match="two linears have one name"):
        ModelEntry.parse(json.dumps(document), paths=False)
    document["linears"] = [{"module": "../q_proj", "inputs": 1, "outputs": 1}]
    with pytest.raises(CatalogueError, match=r"linears\.0\.module"):
        ModelEntry.parse(json.dumps(document), paths=False)


@pytest.mark.parametrize(
    ("values", "why"), [({"model_type": "mamba", "hidden_size": 8, "num_attention_heads": 2}, "'mamba' is not known")]
)  # fmt: skip
def test_an_unknown_family_is_not_guessed_at(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ShapeError, match=why):
        linears_of_config(values)
