"""The coordinator's count against the tokenizers of transformers and of llama.cpp themselves."""

import asyncio
import random
import re
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fixtures_models import smollm2_file, smollm2_path
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator import spelling, tokens
from coordinator.tokens import TokenCounter, TokenizerUnavailable, parts, vocabulary_file
from potluck.catalogue import Catalogue, File, LocalPath
from potluck.v1 import work_pb2
from potluck.vocabulary import VocabularyError, tokenizer_of_gguf
from worker.engines.emulator import word
from worker.engines.pieces import Pieces
from worker.engines.stops import Stops

__all__ = ["smollm2_path"]

CATALOGUE = Catalogue.builtin(emulator=True)
MODEL, EMULATOR = "smollm2-135m-instruct", "emulator-small"

TEXTS = [
    "", " ", "\n", "Hello, world!", "  two  spaces ", "line\r\nbreaks\n\n\n", "\ttabs\t\tin code",
    "def f(x):\n    return {'a': [1, 2.50, 0xFF]}  # why?\n", "1234567890 and 12 34", "in  12 or\n 7",
    "Grüße, naïve café, ÀÉÎ", "日本語の文章です。中文字符", "한국어 문장", "Привет, мир", "مرحبا بالعالم", "שלום",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈 end", "a\u0301 combining", "\u00a0\u2009\u3000 spaces", "it's we'LL I'd",
    "<|im_start|>user\nhi<|im_end|>", "<|endoftext|>", "½ ² ٣ Ⅷ", "\x00\x01\x7f", "\U0010ffff\ufffd\ufeff",
    "a" * 500, " " * 300, "=" * 200, "https://example.org/a?b=c&d=%20#e", "$x^2 + \\frac{a}{b}$",
]  # fmt: skip


async def never(_: File) -> Path:
    raise AssertionError("nothing needs to be fetched")


def found(path: Path) -> Callable[[File], Awaitable[Path]]:
    async def obtain(_: File) -> Path:
        return path

    return obtain


@pytest.fixture(scope="module")
def counter(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenCounter:
    counter = TokenCounter(tmp_path_factory.mktemp("tokenizers"), lambda: CATALOGUE)
    entry = CATALOGUE.get(MODEL)
    assert entry is not None
    asyncio.run(counter.prepare(entry, found(smollm2_path)))
    return counter


@pytest.fixture(scope="module")
def reference(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Transformers' tokenizer from the GGUF, with the cut before digits that its reader leaves out.

    The model's published tokenizer.json cuts each digit off, and so does llama.cpp; transformers 5.23 forgets
    it for files (`smollm` is not in its table), which shows where spaces stand before digits.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("gguf")
    (folder / "model.gguf").symlink_to(smollm2_path)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file="model.gguf")
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    return tokenizer


def ids_of(counter: TokenCounter, text: str) -> list[int]:
    exact = counter._ready[smollm2_file().sha256]
    ids: list[int] = exact.tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.engine
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:20]))
def test_counts_are_those_of_transformers(counter: TokenCounter, reference: Any, text: str) -> None:
    ids = reference(text, add_special_tokens=False)["input_ids"]
    assert ids_of(counter, text) == ids
    assert counter.count_text(MODEL, text) == len(ids)


@pytest.mark.engine
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8"), max_size=80) | st.text("a B1.\n \té語😀'", max_size=60))
def test_counts_are_those_of_transformers_for_any_text(
    counter: TokenCounter, reference: Any, text: str
) -> None:
    assert ids_of(counter, text) == reference(text, add_special_tokens=False)["input_ids"]


LLAMA_CPP = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_ctx, params.n_parallel, params.warmup, params.cpuparams.n_threads = 256, 1, False, 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def llama_cpp(smollm2_path: Path) -> Iterator[str]:
    """The address of llama.cpp's own server, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", LLAMA_CPP, str(smollm2_path), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    yield next(line.strip() for line in lines if line.startswith("http"))
    process.kill()
    process.communicate(timeout=60)


@pytest.mark.engine
def test_counts_are_those_of_llama_cpp(counter: TokenCounter, llama_cpp: str) -> None:
    """Id for id, over the texts above and 200 random mixtures of hard pieces."""
    draw = random.Random(7)
    hard = [*TEXTS[1:25], "a", " ", "  ", "\n", "1", "23", "'s", "é", "語", "😀", "\r\n", "٣", "the", " of"]
    mixed = ["".join(draw.choices(hard, k=draw.randint(1, 9))) for _ in range(200)]
    with httpx2.Client(base_url=llama_cpp, trust_env=False, timeout=60) as client:
        for text in [text for text in [*TEXTS, *mixed] if "\x00" not in text]:  # its C strings end there
            asked = {"content": text, "add_special": False, "parse_special": True}
            assert client.post("/tokenize", json=asked).json()["tokens"] == ids_of(counter, text), text


CONVERSATIONS: list[list[tuple[str, str]]] = [
    [("user", "Hello!")],
    [("system", "You are terse."), ("user", "What is 12 x 12?")],
    [("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", "Tell me a joke.\nA short one.")],
    [
        ("system", "日本語で答えて"),
        ("user", "元気？ 😀"),
        ("assistant", "はい"),
        ("user", "def f():\n    pass"),
    ],
    [("user", "")],
    [("user", "x" * 1_000)],
    [("developer", "Be kind."), ("user", "ok"), ("tool", '{"a": 1}')],
]


@pytest.mark.engine
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda turns: f"{len(turns)} of {turns[0][0]}")
def test_a_chat_counts_what_the_rendered_template_has(
    counter: TokenCounter, reference: Any, conversation: list[tuple[str, str]]
) -> None:
    """Marks, roles, texts, the start of the answer, and the system message that the template adds by itself."""
    turns = [{"role": role, "content": content} for role, content in conversation]
    rendered = reference.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    messages = [work_pb2.ChatMessage(role=role, content=content) for role, content in conversation]
    expected = len(reference(rendered, add_special_tokens=False)["input_ids"])
    assert counter.count_chat(MODEL, messages) == expected


@pytest.mark.engine
def test_names_and_tool_schemas_count(counter: TokenCounter) -> None:
    plain = counter.count_chat(MODEL, [work_pb2.ChatMessage(role="user", content="hi")])
    named = counter.count_chat(
        MODEL, [work_pb2.ChatMessage(role="user", content="hi", name="ada")], ['{"name": "f"}']
    )
    extra = counter.count_text(MODEL, "ada") + counter.count_text(MODEL, '{"name": "f"}')
    assert named == plain + extra


@pytest.mark.engine
def test_long_texts_are_counted_in_parts_with_the_same_result(counter: TokenCounter) -> None:
    """Cuts fall where no tokenizer joins both sides, so the sum of the parts is the count of the whole."""
    draw = random.Random(3)
    words = ["word", " ", "  ", "\n", "\n\n", ". ", "12", "é", "語", "😀", "tail\n", " a b", "'s "]
    text = "".join(draw.choices(words, k=60_000))
    assert len(list(parts(text, tokens._SAFE_CUT))) > 3
    assert counter.count_text(MODEL, text) == len(ids_of(counter, text))


def test_parts_cover_the_text_and_are_bounded() -> None:
    """Also where there is nowhere to cut: 10 MB of one letter, or of ideographs."""
    for text in ("a" * 10_000_000, "語" * 1_000_000, "a b " * 100_000, "", "x"):
        cut = list(parts(text, tokens._SAFE_CUT))
        assert "".join(cut) == text
        assert max(map(len, cut)) <= tokens.CHUNK_CHARS_MAX


@pytest.mark.engine
async def test_counting_in_a_thread_leaves_the_loop_alone(counter: TokenCounter) -> None:
    """While 2 MB are counted elsewhere, the loop turns: the interpreter lock is given up again and again."""
    text = "The quick brown fox jumps over the lazy dog, 42 times. " * 40_000
    task = asyncio.create_task(asyncio.to_thread(counter.count_text, MODEL, text))
    turns = 0
    while not task.done():
        await asyncio.wait({task}, timeout=0.001)
        turns += 1
    assert task.result() == 40_000 * 15 + 1  # the space at the very end
    assert turns > 20


def test_without_a_tokenizer_bytes_bound_the_count(tmp_path: Path) -> None:
    counter = TokenCounter(tmp_path, lambda: CATALOGUE)
    assert not counter.exact(MODEL)
    assert counter.count_text(MODEL, "日本 a") == 8
    messages = [work_pb2.ChatMessage(role="user", content="hi")]
    assert counter.count_chat(MODEL, messages) == 4 + 2 + 4 + 4 + 21
    assert counter.check_ids(MODEL, [], [1, 2, 3], "abc", final=False)
    assert not counter.check_ids(MODEL, [], list(range(100)), "abc", final=False)
    assert not counter.exact("unknown")
    assert counter.count_text("unknown", "\ud800") == 1


@pytest.mark.engine
def test_a_lone_surrogate_is_counted_not_raised(counter: TokenCounter) -> None:
    assert counter.count_text(MODEL, "a\ud800b") > 0
    assert counter.count_text(MODEL, "a\ud800b" * 5_000) > 0


# -- ids and their text ------------------------------------------------------------------------------


@pytest.mark.engine
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.integers(17, 49_151), max_size=24),
    stop=st.sampled_from(["", "e", "the", "\n", "ing a"]),
    limit=st.integers(1, 24),
)
def test_what_an_honest_engine_sends_is_believed(
    counter: TokenCounter, ids: list[int], stop: str, limit: int
) -> None:
    """Any ids, broken UTF-8 among them, through the engines' own piece rule, with stop strings and limits."""
    table = counter._ready[smollm2_file().sha256].spelling
    assert table is not None
    pieces = Pieces(choice=0, stops=Stops((stop,) if stop else (), ""), tokens_max=limit)
    pushed = (pieces.push(token_id, table.pieces[token_id]) for token_id in ids if not pieces.finish_reason)
    deltas = [delta for delta in pushed if delta is not None]
    if not pieces.finish_reason:
        deltas.append(pieces.end("stop"))
    previous: list[int] = []
    for delta in deltas:
        final = delta.finish_reason == "stop"
        assert counter.check_ids(MODEL, previous[-32:], delta.token_ids, delta.text, final=final)
        previous += delta.token_ids


@pytest.mark.engine
def test_what_a_lying_engine_sends_is_not(counter: TokenCounter) -> None:
    ids = ids_of(counter, "The cat sat on the mat.")
    text = "The cat sat on the mat."
    assert counter.check_ids(MODEL, [], ids, text, final=False)
    assert counter.check_ids(MODEL, [], ids, text[:-4], final=True)
    assert not counter.check_ids(MODEL, [], ids, text[:-4], final=False)
    assert not counter.check_ids(MODEL, [], [*ids, ids[0]], text, final=False)
    assert not counter.check_ids(MODEL, [], ids[:-1], text, final=True)
    assert not counter.check_ids(MODEL, [], ids, "the cat sat on the mat.", final=False)
    assert not counter.check_ids(MODEL, [], [10**9], "x", final=False)
    assert not counter.check_ids(MODEL, [], [49_152], "", final=False)
    assert not counter.check_ids(MODEL, [], ids * 200, "", final=True), (
        "far more than a stop string is cut off"
    )


@pytest.mark.engine
def test_tokens_without_text_are_not_a_way_to_be_paid(counter: TokenCounter) -> None:
    """Some control tokens are honest, shown or not; a run of them is not."""
    cat = ids_of(counter, " cat")
    assert counter.check_ids(MODEL, [], [*cat, 1], " cat", final=False)
    assert counter.check_ids(MODEL, [], [*cat, 1], " cat<|im_start|>", final=False)
    assert not counter.check_ids(MODEL, [], [*cat, *[1] * 100], " cat", final=False)
    assert not counter.check_ids(MODEL, [], [1] * 100, "", final=True)
    previous = [1] * 8
    assert not counter.check_ids(MODEL, previous, [1], "", final=False), "one in each frame is a run, too"


def test_the_emulators_tokens_are_words(tmp_path: Path) -> None:
    """One token, one word; ids and words follow from each other as in the engine."""
    counter = TokenCounter(tmp_path, lambda: CATALOGUE)
    assert counter.exact(EMULATOR)
    assert counter.count_text(EMULATOR, " babab  fizut\nzuzuz ") == 3
    assert [spelling.proquint(i) for i in range(0, 65_536, 257)] == [word(i) for i in range(0, 65_536, 257)]
    text = f" {word(7)} {word(65_535)}"
    assert counter.check_ids(EMULATOR, [], [7, 65_535], text, final=False)
    assert counter.check_ids(EMULATOR, [], [7, 65_535], text[:-2], final=True)
    assert not counter.check_ids(EMULATOR, [], [7], text, final=False)
    assert not counter.check_ids(EMULATOR, [], [65_536 + 7], f" {word(7)}", final=False)


# -- preparing ---------------------------------------------------------------------------------------


@pytest.mark.engine
async def test_a_tokenizer_is_prepared_once_and_kept(smollm2_path: Path, tmp_path: Path) -> None:
    """Asked for by many at once, fetched once; after a restart nothing is fetched; a damaged one is made anew."""
    entry = CATALOGUE.get(MODEL)
    assert entry is not None
    asked: list[str] = []

    async def obtain(file: File) -> Path:
        asked.append(file.name)
        return smollm2_path

    first = TokenCounter(tmp_path, lambda: CATALOGUE)
    await asyncio.gather(*(first.prepare(entry, obtain) for _ in range(5)))
    assert len(asked) == 1
    assert first.exact(MODEL)
    second = TokenCounter(tmp_path, lambda: CATALOGUE)
    await second.prepare(entry, never)
    for text in TEXTS:
        assert second.count_text(MODEL, text) == first.count_text(MODEL, text)
    (tmp_path / f"{smollm2_file().sha256}.json").write_text("{}")
    third = TokenCounter(tmp_path, lambda: CATALOGUE)
    await third.prepare(entry, obtain)
    assert len(asked) == 2
    assert third.exact(MODEL)


async def test_what_cannot_be_prepared_says_why_and_stays_bounded(tmp_path: Path) -> None:
    entry = CATALOGUE.get(MODEL)
    assert entry is not None
    counter = TokenCounter(tmp_path, lambda: CATALOGUE)
    broken = tmp_path / "x.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(TokenizerUnavailable, match="is counted by its bytes"):
        await counter.prepare(entry, found(broken))
    assert not counter.exact(MODEL)
    huge = entry.variants[0].files[0].model_copy(update={"size_bytes": 1 << 40})
    large = entry.model_copy(
        update={"variants": (entry.variants[0].model_copy(update={"files": (huge,)}),), "tokenizer": None}
    )
    assert vocabulary_file(large) is None
    with pytest.raises(TokenizerUnavailable, match=r"Name a tokenizer\.json"):
        await counter.prepare(large, never)


@pytest.mark.engine
async def test_an_entry_can_name_its_tokenizer(counter: TokenCounter, tmp_path: Path) -> None:
    """Weights too large to fetch for their vocabulary: a tokenizer.json stands in the entry."""
    kept = counter.folder / f"{smollm2_file().sha256}.json"
    file = File(
        name="tokenizer.json",
        sha256="e" * 64,
        size_bytes=kept.stat().st_size,
        source=LocalPath(path=str(kept)),
    )
    entry = CATALOGUE.entries[0].model_copy(update={"tokenizer": file})
    catalogue = Catalogue((entry,))
    other = TokenCounter(tmp_path, lambda: catalogue)
    await other.prepare(entry, found(kept))
    assert other.count_text(MODEL, "Hello, world!") == counter.count_text(MODEL, "Hello, world!")


# -- other vocabularies ------------------------------------------------------------------------------

CORPUS = [
    *TEXTS,
    *("The quick brown fox 12345 jumps; it's 3.14! GmbH iPhone wirdABC naïve 日本語 かな\n" * 3).split("!"),
]


def write_gguf(path: Path, pre: str) -> Path:
    """A small vocabulary that was learned with that way of cutting, as llama.cpp's converter writes it."""
    import gguf
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from potluck.vocabulary import _cut

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _cut(pre)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    import json

    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = [
        *sorted(model["vocab"], key=model["vocab"].__getitem__),
        "<|endoftext|>",
        "<|end|>",
        "<think>",
    ]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    writer.add_token_types([1] * (len(vocabulary) - 3) + [3, 3, 4])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    return finished(writer, path)


def write_sentencepiece(path: Path, *, prefix: bool) -> Path:
    import gguf

    words = ["▁the", "▁quick", "▁", "he", "t", "h", "e", "▁t", "▁the", "qu", "ick", "q", "u", "i", "c", "k"]
    tokens_ = list(
        dict.fromkeys(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words])
    )
    tokens_ += ["▁q", "▁qu", "ic", "▁▁", "é"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens_)
    writer.add_token_scores([-float(i) for i in range(len(tokens_))])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(tokens_) - 259)])
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(prefix)
    return finished(writer, path)


def finished(writer: Any, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def transformers_reading(path: Path) -> Any:
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    architecture, tokenizer, _ = get_gguf_tokenizer(str(path))
    return convert_gguf_tokenizer(architecture, tokenizer)[0]


@pytest.mark.engine
@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_other_ways_of_cutting_agree_with_transformers(tmp_path: Path, pre: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", pre)
    mine, theirs = tokenizer_of_gguf(path), transformers_reading(path)
    for text in [*CORPUS, "<think>x<|end|>", "I'Ll 1234567 ÀBCdef\r\n\r\n  y"]:
        assert (
            mine.encode(text, add_special_tokens=False).ids
            == theirs.encode(text, add_special_tokens=False).ids
        )


@pytest.mark.engine
def test_sentencepiece_agrees_with_transformers_and_spells_its_bytes(tmp_path: Path) -> None:
    path = write_sentencepiece(tmp_path / "m.gguf", prefix=True)
    mine, theirs = tokenizer_of_gguf(path), transformers_reading(path)
    table = spelling.spelling_of(mine)
    assert table is not None
    for text in ["the quick", " the  quick", "thé 語", "", "the\nquick", "quick"]:
        ids = mine.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert table.agrees([], ids, text, final=False)
        assert table.agrees([300], ids, " " + text, final=False) or not text or text.startswith(" ")
    bare = tokenizer_of_gguf(write_sentencepiece(tmp_path / "b.gguf", prefix=False))
    assert bare.encode("the", add_special_tokens=False).tokens[0] != "▁the"


def test_deepseeks_cuts_are_those_of_its_tokenizer_json() -> None:
    from potluck.vocabulary import _cut, byte_alphabet

    back = {character: byte for byte, character in byte_alphabet().items()}

    def cut(pre: str, text: str) -> list[str]:
        found = _cut(pre).pre_tokenize_str(text)
        return [bytes(back[c] for c in piece).decode() for piece, _ in found]

    assert cut("deepseek-v3", "a 12345 日本 x.y() don't") == [
        "a", " ", "123", "45", " ", "日本", " x", ".y", "()", " don", "'t",
    ]  # fmt: skip
    assert cut("deepseek-coder", "ab 12日本\n.") == ["ab", " ", "1", "2", "日本", "\n", "."]


def test_a_vocabulary_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    import gguf

    for model, pre, why in [("bert", "", "kind 'bert'"), ("gpt2", "martian", "'martian' of cutting")]:
        path = tmp_path / f"{model}.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(["a"])
        writer.add_token_merges(["a a"] if model == "bert" else ["a b"])
        finished(writer, path)
        with pytest.raises(VocabularyError, match=re.escape(why)):
            tokenizer_of_gguf(path)
