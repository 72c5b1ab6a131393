"""What the fine-tuning benchmarks train: GSM8K as chats, and models with the shapes of their adapters."""

import asyncio
import json
from pathlib import Path
from typing import Final

from fixtures_tiny import write_tiny

from potluck import lora
from potluck.catalogue import DEFAULT_MODEL, Catalogue
from potluck.fetch import fetch
from potluck.linears import linears_of_config, linears_of_gguf
from potluck.lora import Shapes
from worker.engines import weights

CACHE: Final = Path(__file__).resolve().parent.parent / ".cache"
RANK: Final = 16


def write_examples(
    source: Path, folder: Path, examples: int, validation: int, *, shortest: bool = False
) -> None:
    """The first lines and the last ones. Exits with a sentence if the file is another."""
    try:
        lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        chats = [{"messages": [_turn("user", x["question"]), _turn("assistant", x["answer"])]} for x in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{source} is not GSM8K's train.jsonl: {error}") from None
    if shortest:
        chats = sorted(chats, key=lambda chat: len(json.dumps(chat)))[: examples + validation]
    if len(chats) < examples + validation:
        raise SystemExit(f"{source} has {len(chats)} lines; {examples + validation} are needed")
    for name, part in (("examples", chats[:examples]), ("validation", chats[-validation:])):
        text = "".join(json.dumps(chat) + "\n" for chat in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def small_model() -> tuple[weights.Loaded, Shapes]:
    entry = Catalogue.builtin().get(DEFAULT_MODEL)
    assert entry is not None
    variant = next(v for v in entry.variants if v.format == "gguf")
    path = asyncio.run(fetch(variant.files[0], CACHE / "models"))
    loaded = weights.load_model([path], CACHE / "torch", weights.Device("cpu", "float32"), packed=False)
    loaded.model.requires_grad_(False)
    return loaded, lora.shapes(linears_of_gguf(path), loaded.model.config.num_hidden_layers, RANK)


def tiny_model(folder: Path) -> tuple[weights.Loaded, Shapes]:
    (base := folder / "tiny").mkdir()
    paths = write_tiny(base)
    loaded = weights.load_model(paths, base, weights.Device("cpu", "float32"), packed=False)
    loaded.model.requires_grad_(False)
    values = json.loads((base / "config.json").read_text())
    return loaded, lora.shapes(linears_of_config(values), values["num_hidden_layers"], RANK)
