"""Models for the torch engine: GGUF files are converted once, everything is loaded as safetensors.

A converted model lies in the cache as a folder named by its file's sha256, the dtype and the converter's
version; it appears there whole, by a rename, or not at all.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_model
from tokenizers import Tokenizer, pre_tokenizers

from worker.engines.engine import EngineError
from worker.engines.metadata import model_digest, read_metadata, sha256_of
from worker.engines.vocabulary import Vocabulary, read_vocabulary

CONVERTER_VERSION = 1
_MAGIC = b"GGUF"
# llama.cpp's pre-tokenizers that split every digit off before GPT-2's pattern; transformers' reader forgets
# them.
_SINGLE_DIGITS = frozenset({"smollm", "refact", "starcoder", "command-r", "codeshell"})


@dataclass(frozen=True, slots=True)
class Device:
    name: str  # cuda | mps | cpu
    dtype: str  # float32 | bfloat16 | float16


def choose_device(*, cuda: bool, cuda_bfloat16: bool, mps: bool, wanted: str = "", dtype: str = "") -> Device:
    """Where to compute and how exactly: fp32 on a CPU, where half precision is slower; else 16 bits.

    `wanted` and `dtype` are the owner's, from the options. Raises EngineError for what this machine has not.
    """
    present = {"cuda": cuda, "mps": mps, "cpu": True}
    name = wanted or next(device for device, there in present.items() if there)
    if not present.get(name):
        raise EngineError(
            "bad_option", f"device = {wanted!r}: this machine has {[d for d in present if present[d]]}"
        )
    best = {"cpu": "float32", "mps": "float16", "cuda": "bfloat16" if cuda_bfloat16 else "float16"}[name]
    if dtype not in ("", "float32", "bfloat16", "float16"):
        raise EngineError("bad_option", f"dtype = {dtype!r}: float32, bfloat16 and float16 are known")
    return Device(name, dtype or best)


def this_device(wanted: str, dtype: str) -> Device:
    cuda = torch.cuda.is_available()
    return choose_device(
        cuda=cuda,
        cuda_bfloat16=cuda and torch.cuda.is_bf16_supported(),
        mps=torch.backends.mps.is_available(),
        wanted=wanted,
        dtype=dtype,
    )


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to compute. `model` and `tokenizer` are transformers' and tokenizers' own."""

    model: Any
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    device: Device
    digest: str
    context_tokens: int
    chat_template: str
    bos: str
    bos_id: int  # what an empty prompt begins with
    eos: str


def load_model(paths: list[Path], cache: Path, device: Device) -> Loaded:
    """From one GGUF file, or from the files of a folder with config.json. Raises EngineError."""
    if not paths:
        raise EngineError("bad_model_file", "torch needs a GGUF file, or safetensors with their config.json")
    folder = _folder_of(paths, cache, device)
    transformers.utils.logging.disable_progress_bar()
    dtype = getattr(torch, device.dtype)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        _check(model.config)
        wrapped = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise EngineError("load_failed", f"transformers could not load the model: {error}") from error
    model.eval().to(device.name)
    return Loaded(
        model=model,
        tokenizer=wrapped.backend_tokenizer,
        vocabulary=read_vocabulary(wrapped.backend_tokenizer.to_str(), _ends(model, wrapped)),
        device=device,
        digest=model_digest(paths),
        context_tokens=int(model.config.max_position_embeddings),
        chat_template=wrapped.chat_template or "",
        bos=wrapped.bos_token or "",
        bos_id=wrapped.bos_token_id if wrapped.bos_token_id is not None else wrapped.eos_token_id or 0,
        eos=wrapped.eos_token or "",
    )


def _ends(model: Any, tokenizer: Any) -> set[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {index for index in [*ids, tokenizer.eos_token_id] if index is not None}


def _check(config: Any) -> None:
    """The batch gives every layer one mask and one kind of cache: refuse models that need others."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or not hasattr(config, "num_hidden_layers"):
        raise EngineError(
            "unsupported_model", f"torch serves models of full attention only, this one has {kinds}"
        )


def _folder_of(paths: list[Path], cache: Path, device: Device) -> Path:
    with paths[0].open("rb") as file:
        is_gguf = file.read(len(_MAGIC)) == _MAGIC
    if is_gguf:
        return _converted(paths[0], cache, device)
    folders = {path.parent for path in paths if path.name == "config.json"}
    if len(folders) != 1:
        raise EngineError(
            "bad_model_file", f"{paths[0].name} is no GGUF, and there is no config.json beside it"
        )
    return folders.pop()


def _converted(path: Path, cache: Path, device: Device) -> Path:
    """The folder of the converted model, made now if it is not there. Raises EngineError."""
    target = cache / f"{sha256_of(path)}-{device.dtype}-{CONVERTER_VERSION}"
    if target.is_dir():
        return target
    read_metadata(path)  # says clearly what is wrong with a broken file
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="converting-", dir=cache))
    try:
        _convert(path, work, device)
        work.replace(target)
    except OSError as error:
        if not target.is_dir():  # else another process was faster
            raise EngineError("load_failed", f"the converted model could not be stored: {error}") from error
    except (ValueError, KeyError) as error:
        raise EngineError("load_failed", f"transformers could not read {path.name}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _convert(path: Path, work: Path, device: Device) -> None:
    transformers.utils.logging.disable_progress_bar()
    source: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    dtype = getattr(torch, device.dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, dtype=dtype, **source)
    save_model(model, str(work / "model.safetensors"), metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    config.pop("quantization_config", None)  # the weights are plain now
    (work / "config.json").write_text(json.dumps(config, indent=1))
    model.generation_config.save_pretrained(work)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **source)
    if read_metadata(path).pre_tokenizer in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    tokenizer.save_pretrained(work)
