"""Ids are spelled exactly as the model's own tokenizer spells them."""

import json

import pytest
from fixtures_tiny import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from worker.engines.engine import EngineError
from worker.engines.vocabulary import read_vocabulary

BYTE_LEVEL = tiny_tokenizer()
IDS = st.lists(st.integers(0, 275), max_size=30)


def sentencepiece() -> Tokenizer:
    words = ["<unk>", "▁the", "▁", "a", "é", "▁▁", "cat", "🎉", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE(
        vocab={word: index for index, word in enumerate(words)},
        merges=[],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(content=" ", left=1),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return tokenizer


@given(IDS)
def test_byte_level_ids_decode_like_the_tokenizer(ids: list[int]) -> None:
    vocabulary = read_vocabulary(BYTE_LEVEL.to_str(), [])
    assert vocabulary.decode(ids) == BYTE_LEVEL.decode(ids, skip_special_tokens=True)


@given(st.lists(st.integers(1, 7), max_size=12), st.text(max_size=5))
def test_sentencepiece_ids_decode_like_the_tokenizer(ids: list[int], more: str) -> None:
    tokenizer = sentencepiece()
    vocabulary = read_vocabulary(tokenizer.to_str(), [])
    ids = [*ids, *(8 + byte for byte in more.encode())]
    assert vocabulary.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_special_tokens_have_no_text_and_ends_are_known_by_name() -> None:
    vocabulary = read_vocabulary(BYTE_LEVEL.to_str(), [5])
    ids = BYTE_LEVEL.get_vocab(with_added_tokens=True)
    end, begin = ids["<|im_end|>"], ids["<|im_start|>"]
    assert vocabulary.bytes_of(end, 3) == vocabulary.bytes_of(begin, 3) == b""
    assert vocabulary.end_ids == {5, end, ids["<|endoftext|>"]}
    assert vocabulary.bytes_of(100_000, 0) == b""


def test_a_tokenizer_that_cannot_be_spelled_is_refused() -> None:
    strange = json.loads(BYTE_LEVEL.to_str()) | {
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}
    }
    for text in (json.dumps(strange), "{}", "no json"):
        with pytest.raises(EngineError) as raised:
            read_vocabulary(text, [])
        assert raised.value.code == "bad_tokenizer"
