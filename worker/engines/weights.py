"""Models for the torch engine: GGUF files are converted once, everything is loaded as safetensors.

A converted model lies in the cache as a folder named by its file's sha256, the dtype and the converter's
version; it appears there whole, by a rename, or not at all. A lock of the cache sees to it that one process
converts at a time; it ends with its process.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from safetensors.torch import save_model
from tokenizers import Tokenizer

from potluck.gguf import GgufError
from potluck.lock import FileLock, Locked
from potluck.shape import DENSE_FAMILIES, MLA_FAMILIES, MOE_FAMILIES
from potluck.vocabulary import VocabularyError, tokenizer_of_gguf
from worker.engines.engine import EngineError
from worker.engines.masks import FULL, SLIDING, layer_kinds
from worker.engines.metadata import model_digest, read_metadata, sha256_of
from worker.engines.packed import pack
from worker.engines.vocabulary import Vocabulary, read_vocabulary

CONVERTER_VERSION = 1
POLL_S = 0.2  # while another process converts
_MAGIC = b"GGUF"

# Those that can be priced, without gemma2: torch's fused attention cannot cap its logits.
FAMILIES = (DENSE_FAMILIES | MOE_FAMILIES | MLA_FAMILIES) - {"gemma2"}


@dataclass(frozen=True, slots=True)
class Device:
    name: str  # cuda | mps | cpu
    dtype: str  # float32 | bfloat16 | float16

    def used_bytes(self) -> int:
        """What this process has now of the card's memory, or of the machine's."""
        if self.name != "cuda":
            return int(psutil.Process().memory_info().rss)
        torch.cuda.empty_cache()
        return int(torch.cuda.memory_reserved())

    def hold(self, cap_bytes: int) -> None:
        """A card's allocator then refuses what passes the cap, whatever was reckoned before. 0: no cap."""
        if cap_bytes and self.name == "cuda":
            whole = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / whole))


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
class Text:
    """How a model's text becomes ids and back. `begin_ids` stand before a text that is no rendered chat."""

    tokenizer: Tokenizer
    begin_ids: tuple[int, ...]
    end_id: int | None
    bos: str
    eos: str
    chat_template: str

    @property
    def control(self) -> dict[str, int]:
        """The ids of the control tokens by their text."""
        added = self.tokenizer.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if token.special}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to compute; `model` is transformers' own."""

    model: Any
    text: Text
    vocabulary: Vocabulary
    device: Device
    digest: str
    context_tokens: int


def no_room(what: str, cap_bytes: int) -> EngineError:
    return EngineError(
        "no_room", f"the model {what}, and this worker may use {cap_bytes / 1e9:.2f} GB for it"
    )


def load_model(
    paths: list[Path], cache: Path, device: Device, memory_bytes_max: int = 0, *, packed: bool = True
) -> Loaded:
    """From one GGUF file, or from the files of a folder with config.json. Raises EngineError, also where the
    weights alone take more than `memory_bytes_max` (0: no cap). `packed`: linear layers as fast as can be, of
    which no gradient can be taken.
    """
    if not paths:
        raise EngineError("bad_model_file", "torch needs a GGUF file, or safetensors with their config.json")
    transformers.utils.logging.disable_progress_bar()
    try:
        with paths[0].open("rb") as file:
            is_gguf = file.read(len(_MAGIC)) == _MAGIC
        text = _text_of_gguf(paths[0]) if is_gguf else _text_of_folder(_folder_of(paths))
        folder = _converted(paths[0], cache, device) if is_gguf else _folder_of(paths)
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        _check(config)
        if memory_bytes_max and (size := _size_bytes(config, device)) > memory_bytes_max:
            raise no_room(f"has {size / 1e9:.2f} GB of weights", memory_bytes_max)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, device.dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:  # GgufError and VocabularyError are ValueErrors
        named = isinstance(error, GgufError | VocabularyError)
        raise EngineError(
            "load_failed", f"{'' if named else 'the model could not be loaded: '}{error}"
        ) from error
    model.eval().to(device.name)
    if packed:
        pack(model)
    return Loaded(
        model=model,
        text=text,
        vocabulary=read_vocabulary(text.tokenizer.to_str(), _ends(model, text)),
        device=device,
        digest=model_digest(paths),
        context_tokens=int(model.config.max_position_embeddings),
    )


def _text_of_gguf(path: Path) -> Text:
    metadata = read_metadata(path)
    bos_id = metadata.bos_id
    return Text(
        tokenizer=tokenizer_of_gguf(path),
        begin_ids=(bos_id,) if metadata.adds_bos and bos_id is not None else (),
        end_id=metadata.eos_id,
        bos=metadata.token("bos"),
        eos=metadata.token("eos"),
        chat_template=metadata.chat_template,
    )


def _text_of_folder(folder: Path) -> Text:
    wrapped = transformers.AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_fast=True
    )
    tokenizer = wrapped.backend_tokenizer
    return Text(
        tokenizer=tokenizer,
        begin_ids=tuple(tokenizer.encode("").ids),
        end_id=wrapped.eos_token_id,
        bos=wrapped.bos_token or "",
        eos=wrapped.eos_token or "",
        chat_template=wrapped.chat_template or "",
    )


def _ends(model: Any, text: Text) -> set[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {index for index in [*ids, text.end_id] if index is not None}


def _check(config: Any) -> None:
    """Refuse what the batch has no masks or no cache for. Raises EngineError.

    A family outside the list might compute nonsense without an error, so it is refused by name.
    """
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise EngineError("unsupported_model", f"torch does not serve {config.model_type}; it serves {known}")
    if strange := layer_kinds(config) - {FULL, SLIDING}:
        raise EngineError(
            "unsupported_model", f"torch serves full and sliding attention, this model has {sorted(strange)}"
        )


def _size_bytes(config: Any, device: Device) -> int:
    """Of the weights in memory, before any is read."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, device.dtype))
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _folder_of(paths: list[Path]) -> Path:
    folders = {path.parent for path in paths if path.name == "config.json"}
    if len(folders) != 1:
        raise EngineError(
            "bad_model_file", f"{paths[0].name} is no GGUF, and there is no config.json beside it"
        )
    return folders.pop()


def _converted(path: Path, cache: Path, device: Device, wait: Callable[[float], None] = time.sleep) -> Path:
    """The folder of the converted model, made now if it is not there. Raises EngineError.

    Of processes that want it together one converts, which takes twice the model's memory; the others wait.
    """
    target = cache / f"{sha256_of(path)}-{device.dtype}-{CONVERTER_VERSION}"
    told = False
    while not target.is_dir():
        try:
            with FileLock.acquire(cache / "converting.lock"):
                if not target.is_dir():  # else it came while we looked at the lock
                    _convert_into(target, path, device)
        except Locked:
            if not told:
                sys.stderr.write("engine: another process converts a model; waiting for it\n")
                told = True
            wait(POLL_S)
        except OSError as error:
            raise EngineError("load_failed", f"the converted model could not be stored: {error}") from error
    return target


def _convert_into(target: Path, path: Path, device: Device) -> None:
    """With the lock held: what is half-made here belongs to nobody, its process was killed."""
    for stale in target.parent.glob("converting-*"):
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix="converting-", dir=target.parent))
    try:
        _convert(path, work, device)
        work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _convert(path: Path, work: Path, device: Device) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=getattr(torch, device.dtype),
        local_files_only=True,
        trust_remote_code=False,
    )
    save_model(model, str(work / "model.safetensors"), metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    config.pop("quantization_config", None)  # the weights are plain now
    (work / "config.json").write_text(json.dumps(config, indent=1))
    model.generation_config.save_pretrained(work)
