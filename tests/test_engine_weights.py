"""A GGUF file is converted once on a machine, whoever starts together and whoever is killed at it."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest

from worker.engines import weights
from worker.engines.engine import EngineError

LIMIT_S = 60.0
CPU = weights.Device("cpu", "float32")
HALF_MADE = """
import sys
from pathlib import Path
from potluck.lock import FileLock
cache = Path(sys.argv[1])
lock = FileLock.acquire(cache / "converting.lock")
(cache / "converting-half").mkdir()
print("half-made", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of one tiny layer."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    width, deep, tokens = 32, 64, 48
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(deep)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 4)
    writer.add_vocab_size(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([str(token) for token in range(tokens)])
    shapes = {"token_embd": (tokens, width), "output_norm": (width,), "output": (tokens, width)}
    for name in ("q", "k", "v", "output"):
        shapes[f"blk.0.attn_{name}"] = (width, width)
    for name in ("attn_norm", "ffn_norm"):
        shapes[f"blk.0.{name}"] = (width,)
    for name in ("ffn_gate", "ffn_up"):
        shapes[f"blk.0.{name}"] = (deep, width)
    shapes["blk.0.ffn_down"] = (width, deep)
    random = np.random.default_rng(3)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_who_starts_together_converts_once(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One converts while the others wait for it; then all use the folder that it made."""
    convert = weights._convert
    waiting, over = threading.Event(), threading.Event()
    made = []

    def first(path: Path, work: Path, device: weights.Device) -> None:
        made.append(work)
        assert waiting.wait(LIMIT_S), "nobody waits"
        convert(path, work, device)
        over.set()

    def wait(_: float) -> None:
        waiting.set()
        assert over.wait(LIMIT_S)

    monkeypatch.setattr(weights, "_convert", first)
    with ThreadPoolExecutor(3) as threads:
        wanted = [threads.submit(weights._converted, path, tmp_path, CPU, wait) for _ in range(3)]
        folders = {one.result() for one in wanted}
    assert len(folders) == len(made) == 1
    assert (folders.pop() / "model.safetensors").exists()
    assert not list(tmp_path.glob("converting-*"))


def test_what_a_killed_conversion_left_goes_once_nobody_holds_the_lock(path: Path, tmp_path: Path) -> None:
    """A half-made folder stays as long as its process lives, and goes before the next conversion."""
    half = tmp_path / "converting-half"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HALF_MADE, str(tmp_path)], **pipes) as other:  # type: ignore[call-overload]  # mypy wants each pipe spelt out
        assert other.stdout.readline() == b"half-made\n"
        folder = weights._converted(path, tmp_path, CPU, _kills(other, half))
    assert other.returncode != 0, "it was waited for until it was killed"
    assert (folder / "config.json").exists()
    assert not list(tmp_path.glob("converting-*"))


def _kills(process: "subprocess.Popen[bytes]", half: Path) -> Callable[[float], None]:
    def wait(_: float) -> None:
        assert half.is_dir(), "its process lives"
        process.kill()
        process.wait(LIMIT_S)

    return wait


def test_a_failed_conversion_leaves_neither_a_folder_nor_a_lock(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, work: Path, device: weights.Device) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(weights, "_convert", full)
    with pytest.raises(EngineError, match="could not be stored: No space left"):
        weights._converted(path, tmp_path, CPU)
    assert not list(tmp_path.glob("converting-*"))
    monkeypatch.undo()
    assert weights._converted(path, tmp_path, CPU).is_dir()
