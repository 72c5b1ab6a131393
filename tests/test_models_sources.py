"""The operator's own models: read and put away at the start, and from every source into a real worker."""

import asyncio
import hashlib
import http.server
import io
import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from fixtures_models import smollm2_path
from fixtures_pool import Process, RealPool
from fixtures_store import NOW
from fixtures_worker import EMULATOR, FakeCa, FakeCoordinator, working
from structlog.testing import capture_logs
from test_worker_files import served

from coordinator.artifact_service import ArtifactServicer
from coordinator.artifacts import ArtifactStore
from coordinator.core.jobs import WorkerId
from coordinator.models import Models, ModelsError
from coordinator.records import Role
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.tokens import TokenCounter
from coordinator.vocabularies import Vocabularies
from potluck.catalogue import DEFAULT_MODEL, Artifact, Catalogue, File, ModelEntry, Variant
from potluck.logs import configure
from potluck.v1 import session_pb2

__all__ = ["smollm2_path"]

ROOT = Path(__file__).resolve().parent.parent
REVISION = "0123456789abcdef" * 2 + "01234567"
HUB = {"kind": "huggingface", "repo": "org/repo", "revision": REVISION, "path": "sub/m.gguf"}
PATH = {"kind": "path", "path": "models/m.gguf"}
ARTIFACT = {"kind": "artifact"}
DATA = bytes(range(256)) * 5_000


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file(source: dict[str, Any], data: bytes = DATA, **changes: Any) -> dict[str, Any]:
    return {
        "name": "m.gguf", "sha256": digest(data), "size_bytes": len(data), "source": source, **changes,
    }  # fmt: skip


def entry(name: str, *files: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Served by the emulator, which takes files and does not look into them."""
    variant = {"format": "gguf", "engines": ["emulator"], "files": list(files), "memory_bytes": 1}
    return {**json.loads(EMULATOR.model_dump_json()), "name": name, "variants": [variant], **changes}


def write_catalogue(home: Path, *entries: dict[str, Any]) -> Path:
    path = home / "coordinator" / "catalogue.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"models": entries}), encoding="utf-8")
    return path


def write_model(home: Path, data: bytes = DATA) -> Path:
    path = home / "coordinator" / "models" / "m.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def store_in(home: Path) -> ArtifactStore:
    return ArtifactStore(home / "coordinator" / "artifacts")


def write_gguf(path: Path) -> Path:
    """A model of one tiny layer, with a vocabulary of bytes and one word."""
    from potluck.vocabulary import byte_alphabet

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_head_count(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*(byte_alphabet()[byte] for byte in range(256)), "ab", "<|end|>"])
    writer.add_token_types([1] * 257 + [3])
    writer.add_token_merges(["a b"])
    for name, shape in (("token_embd", (258, 8)), ("blk.0.attn_q", (8, 8)), ("blk.0.ffn_up", (8, 16))):
        writer.add_tensor(f"{name}.weight", np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@asynccontextmanager
async def opened(home: Path, **settings: Any) -> AsyncIterator[tuple[Settings, Store]]:
    made = Settings(home=home, **settings)
    store = await Store.open(made.database_url, NOW)
    try:
        yield made, store
    finally:
        await store.close()


# -- at the coordinator's start ----------------------------------------------------------------------


async def test_without_a_file_the_pool_offers_what_comes_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as (settings, store):
        models = await Models.open(store, settings)
    assert models.catalogue == Catalogue.builtin()


async def test_own_models_stand_beside_and_over_the_built_in_ones(tmp_path: Path) -> None:
    """A file with a path is in the store after the start, and the wire says artifact."""
    original = write_model(tmp_path)
    write_catalogue(tmp_path, entry("mine", file(PATH)), entry("smollm2-135m-instruct", file(HUB)))
    store_in(tmp_path).folder.mkdir()
    (store_in(tmp_path).folder / ".incoming-0123").write_bytes(b"of a crash")
    async with opened(tmp_path) as (settings, store):
        models = await Models.open(store, settings)
        assert [e.name for e in models.catalogue.entries] == ["smollm2-135m-instruct", "mine"]
        assert models.catalogue.entries[0].files[0].source.kind == "huggingface"
        assert [path.name for path in models.artifacts.folder.iterdir()] == [digest(DATA)]
        assert models.artifacts.path(digest(DATA)).read_bytes() == DATA
        received, refused = Catalogue.from_wire(models.catalogue.to_wire())
        mine = received.get("mine")
        assert mine is not None
        assert (mine.files[0].source, refused) == (Artifact(), [])
        original.unlink()
        assert (await Models.open(store, settings)).catalogue == models.catalogue, "the original may go"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (file(PATH, sha256="x"), "variants.0.files.0.sha256: String should match"),
        (file(PATH, sha256="0" * 64), f"variants.0.files.0.sha256: .* have the sha256 {digest(DATA)}"),
        (file(PATH, size_bytes=7), f"variants.0.files.0.size_bytes: .* has {len(DATA)} bytes, not 7"),
        (file({**PATH, "path": "no/where"}), "variants.0.files.0.source.path: no/where cannot be read: No such"),
        (file({**PATH, "path": "models"}), "variants.0.files.0.size_bytes"),
        (file({**PATH, "path": "~nobody-of-that-name/x"}), "variants.0.files.0.source.path"),
        (file(ARTIFACT), "variants.0.files.0.source: the artifact store does not have"),
        (file({**HUB, "revision": "main"}), "variants.0.files.0.source.huggingface.revision"),
    ],
)  # fmt: skip
async def test_a_bad_file_is_named_by_entry_and_field(tmp_path: Path, bad: dict[str, Any], said: str) -> None:
    write_model(tmp_path)
    path = write_catalogue(tmp_path, entry("good", file(HUB)), entry("bad", bad))
    async with opened(tmp_path) as (settings, store):
        with pytest.raises(ModelsError, match=re.escape(f"{path}: bad: ") + said):
            await Models.open(store, settings)
    assert not list(store_in(tmp_path).folder.glob("*")), "nothing of it is kept"


async def test_a_size_that_is_not_that_of_the_stored_file_is_named(tmp_path: Path) -> None:
    write_model(tmp_path)
    async with opened(tmp_path) as (settings, store):
        write_catalogue(tmp_path, entry("mine", file(PATH)))
        await Models.open(store, settings)
        write_catalogue(tmp_path, entry("mine", file(ARTIFACT, size_bytes=7)))
        with pytest.raises(ModelsError, match=f"files.0.size_bytes: .* has {len(DATA)} bytes"):
            await Models.open(store, settings)


async def test_names_that_clash_and_what_is_no_catalogue_end_the_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as (settings, store):
        path = write_catalogue(tmp_path, entry("mine", file(HUB), aliases=["smollm2"]))
        with pytest.raises(ModelsError, match="the name smollm2 stands twice"):
            await Models.open(store, settings)
        path.write_text("{")
        with pytest.raises(ModelsError, match="the catalogue is no JSON"):
            await Models.open(store, settings)
        path.unlink()
        path.mkdir()
        with pytest.raises(ModelsError, match="Is a directory"):
            await Models.open(store, settings)


async def test_what_admins_added_reads_no_paths_and_never_bars_the_start(tmp_path: Path) -> None:
    write_model(tmp_path)
    write_catalogue(tmp_path, entry("mine", file(PATH)))
    async with opened(tmp_path) as (settings, store):
        admin, _ = await store.create_member("ada", Role.ADMIN, 0, "first", NOW)
        for added in (
            entry("evil", file({"kind": "path", "path": "/etc/shadow"})),
            entry("clash", file(HUB), aliases=["mine"]),
            entry("fine", file(HUB)),
        ):
            await store.put_model(added["name"], json.dumps(added).encode(), admin.id, NOW)
        with capture_logs() as logs:
            models = await Models.open(store, settings)
    assert [e.name for e in models.catalogue.entries] == ["smollm2-135m-instruct", "mine", "fine"]
    left_out = {line["model"]: line["why"] for line in logs if line["action"] == "model_left_out"}
    assert "path sources" in left_out["evil"]
    assert "mine stands twice" in left_out["clash"]


async def test_tokens_are_counted_with_the_vocabulary_of_an_own_model(tmp_path: Path) -> None:
    """Out of the artifact store: nothing else has it once the original is gone."""
    original = write_gguf(tmp_path / "tiny.gguf")
    data = original.read_bytes()
    own = entry("mine", file({"kind": "path", "path": str(original)}, data), family="llama")
    write_catalogue(tmp_path, own)
    async with opened(tmp_path) as (settings, store):
        models = await Models.open(store, settings)
    original.unlink()
    counter = TokenCounter(tmp_path / "tokenizers", lambda: models.catalogue)
    vocabularies = Vocabularies(counter, lambda: models.catalogue, models.artifacts)
    assert not counter.exact("mine")
    vocabularies.want("mine")
    await vocabularies.wait("mine")
    await vocabularies.close()
    assert counter.exact("mine")
    assert counter.count_text("mine", "abc") == 2


# -- end to end --------------------------------------------------------------------------------------


@contextmanager
def hub(data: bytes) -> Iterator[tuple[str, list[str]]]:
    """A Hugging Face of one file; its address and what was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.engine
@pytest.mark.processes
def test_models_of_every_source_reach_a_worker_and_answer(tmp_path: Path, smollm2_path: Path) -> None:
    """Real processes: from the hub, from the operator's path and from the store, each verified and served.

    Then a machine that reaches no hub and no index: the model that comes in a wheel comes from the coordinator.
    """
    data = {"from-hub": DATA, "from-path": DATA[1:], "from-store": DATA[2:]}
    write_model(tmp_path, data["from-path"])
    asyncio.run(store_in(tmp_path).put(_whole(data["from-store"])))
    sources = {"from-hub": HUB, "from-path": PATH, "from-store": ARTIFACT}
    entries = [entry(name, file(source, data[name])) for name, source in sources.items()]
    write_catalogue(tmp_path, *entries, _default_model_from(smollm2_path))
    with hub(data["from-hub"]) as (endpoint, asked):
        pool = RealPool(tmp_path)
        pool.variables |= {"HF_ENDPOINT": endpoint, "POTLUCK_MODEL_CACHE": "", "NO_PROXY": "127.0.0.1"}
        pool.start_coordinator()
        try:
            models = ["--models", ",".join(sources), "--engine", "emulator", "--threads", "1"]
            pool.join("attic", "alice")
            worker = pool.start_worker("attic", *models, ready=False)
            pool.until(lambda: _ready(pool) == set(sources), "all models to be ready", worker)
            for name, content in data.items():
                cached = tmp_path / "attic" / "cache" / "models" / digest(content)
                assert cached.read_bytes() == content
                assert _answered_tokens(pool, name) == 3
            pool.variables |= {"HF_ENDPOINT": "http://127.0.0.1:9", "PIP_NO_INDEX": "1"}
            flags = ["--models", DEFAULT_MODEL, "--engine", "llamacpp", "--threads", "1"]
            pool.add_worker("cellar", "alice", *flags)
            assert _answered_tokens(pool, DEFAULT_MODEL) == 3
            assert asked == [f"/org/repo/resolve/{REVISION}/sub/m.gguf"]
            assert pool.ledger_sum() == 0
        finally:
            pool.close()


def _default_model_from(path: Path) -> dict[str, Any]:
    """The model that comes with Potluck, as a pool without a hub writes it down."""
    [known] = Catalogue.builtin().entries
    values: dict[str, Any] = json.loads(known.model_dump_json())
    values["variants"][0]["files"][0]["source"] = {"kind": "path", "path": str(path)}
    return values


def _answered_tokens(pool: RealPool, model: str) -> int:
    messages: Any = [{"role": "user", "content": "hello"}]
    openai = pool.member("bob").openai()
    answer = openai.chat.completions.create(model=model, messages=messages, max_tokens=3)
    assert answer.usage is not None
    return answer.usage.completion_tokens


def _ready(pool: RealPool) -> set[str]:
    return {model["name"] for model in pool.view("attic").get("models", []) if model["state"] == "ready"}


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.mark.processes
def test_a_start_with_a_bad_catalogue_ends_with_a_sentence(tmp_path: Path) -> None:
    write_catalogue(tmp_path, entry("bad", file({**PATH, "path": "no/where"})))
    process = Process.start("coordinator", ["coordinator", "start", "--http", "127.0.0.1:0"], tmp_path)
    assert process.popen.wait(60) == 1
    process.wait_for(
        "potluck: .*catalogue.json: bad: variants.0.files.0.source.path: no/where cannot be read"
    )
    assert not any("Traceback" in line for line in process.lines)


async def test_a_worker_that_has_more_than_the_pool_is_told_so_at_once(tmp_path: Path) -> None:
    """The store's real service; the catalogue says more bytes than the artifact has."""
    configure("json", stream=io.StringIO())
    store = ArtifactStore(tmp_path / "store")
    await store.put(_whole(DATA))
    longer = File(name="m.gguf", sha256=digest(DATA), size_bytes=len(DATA) + 9, source=Artifact())
    variant = Variant(format="gguf", engines=("emulator",), files=(longer,), memory_bytes=0)
    cache = tmp_path / "cache" / "models"
    cache.mkdir(parents=True)
    (cache / f"{longer.sha256}.partial").write_bytes(DATA + b"more")
    coordinator = FakeCoordinator(FakeCa())
    coordinator.store = ArtifactServicer(store, _anybody)  # type: ignore[assignment]  # the real one for the fake's
    coordinator.catalogue = Catalogue((EMULATOR.model_copy(update={"variants": (variant,)}),)).to_wire()
    await coordinator.start()
    try:
        async with working(coordinator, tmp_path):
            await coordinator.until(
                lambda: [model.state for model in served(coordinator)] == [session_pb2.MODEL_STATE_FAILED]
            )
    finally:
        await coordinator.stop()
    assert "shorter than the catalogue says" in served(coordinator)[0].why


async def _anybody(_: Any) -> WorkerId:
    return WorkerId("wrk_fake")


# -- the page about it -------------------------------------------------------------------------------


def test_the_examples_of_the_page_are_understood() -> None:
    """The whole entry, and it again with every other source."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    whole, *sources = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    assert [e.name for e in Catalogue.parse(json.dumps(whole).encode()).entries] == ["my-model"]
    [example] = whole["models"]
    for source in sources:
        example["variants"][0]["files"][0]["source"] = source
        assert ModelEntry.parse(json.dumps(example), paths=True).files[0].source.kind == source["kind"]
    assert [source["kind"] for source in sources] == ["huggingface", "wheel", "path", "artifact"]


def test_the_commands_of_the_page_say_what_an_entry_needs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    model = write_gguf(tmp_path / "my-model.gguf")
    config = {
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "vocab_size": 257,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = []
    for command in re.findall(r"```sh\n(.*?)\n```", page, re.DOTALL):
        words = shlex.split(command)
        assert words.pop(0) == "python"
        run = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        said.append(run.stdout.strip())
    sha256, size_bytes, shape = said[0].split(" ", 2)
    assert (sha256, int(size_bytes)) == (digest(model.read_bytes()), model.stat().st_size)
    assert json.loads(shape)["head_parameters"] == 258 * 8
    assert json.loads(said[1])["layers"] == 1
    assert {linear["module"].rpartition(".")[2] for linear in json.loads(said[2])} >= {"q_proj", "down_proj"}
    assert said[3] == "{'llama.context_length': 64}"
