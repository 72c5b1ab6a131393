"""A tokenizer out of a GGUF file's own vocabulary.

Such files hold the tokens, their merges or scores, and by name (`tokenizer.ggml.pre`) how text is cut before
merging. The cuts are those of the models' published tokenizer.json files, which llama.cpp repeats
(llama-vocab.cpp). A name that is not known is refused, never guessed at: a wrong cut counts wrongly and
nobody sees it. The `tokenizers` package is imported when it is needed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from potluck.gguf import Header, read_header

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # of tokenizer.ggml.token_type
SPACE: Final = "\u2581"  # sentencepiece writes a space so

_LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2: Final = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_V3: Final = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)
_DEEPSEEK_CODER: Final = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")

# GPT-2's own cut is the one of `ByteLevel`; these cut every digit off first.
_GPT2: Final = frozenset({"gpt-2", "gpt2", "default", "phi-2", "jina-es", "jina-de", "mpt", "olmo"})
_DIGITS: Final = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
_SPLITS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe", "lfm2"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), (_QWEN2,)),
    **dict.fromkeys(("gpt-4o", "llama4", "minimax-m2"), (_GPT4O,)),
    "tekken": (_TEKKEN,),
    "deepseek-v3": _DEEPSEEK_V3,
    "deepseek-coder": _DEEPSEEK_CODER,
}
# Their tokenizers take a word that is a token as a whole, even where its merges would not lead there.
_WHOLE_WORDS: Final = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"})


class VocabularyError(ValueError):
    """No tokenizer can be built from this file; the message says what is unknown or missing."""


def tokenizer_of_gguf(path: Path) -> "Tokenizer":
    """The file's tokenizer; its own special tokens are found in text, none are added around it.

    Takes about a second. Raises VocabularyError, GgufError, OSError.
    """
    header = read_header(path)
    model = header.metadata.get("tokenizer.ggml.model")
    try:
        if model == "gpt2":
            tokenizer = _byte_level(header)
        elif model in ("llama", "gemma4"):
            tokenizer = _sentencepiece(header)
        else:
            raise VocabularyError(f"vocabularies of the kind {str(model)[:40]!r} are not known")
        _mark_special(tokenizer, header, byte_level=model == "gpt2")
    except VocabularyError as error:
        raise VocabularyError(f"{path.name}: {error}") from error
    except Exception as error:  # the library raises bare Exception for whatever does not fit together
        raise VocabularyError(f"{path.name}: its vocabulary cannot be read: {error}") from error
    return tokenizer


def byte_alphabet() -> dict[int, str]:
    """The character in which byte-level vocabularies spell each byte (GPT-2, encoder.py)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {byte: chr(byte) for byte in plain}
    others = (byte for byte in range(256) if byte not in alphabet)
    return alphabet | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _byte_level(header: Header) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models

    name = str(header.metadata.get("tokenizer.ggml.pre", "default"))
    cut = _cut(name)
    spelling = byte_alphabet()
    known = set(spelling.values())
    vocabulary = {
        token if set(token) <= known else "".join(spelling[byte] for byte in token.encode()): index
        for index, token in enumerate(_texts(header, "tokens"))
    }
    merges = [_pair(merge) for merge in _texts(header, "merges")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name in _WHOLE_WORDS, fuse_unk=False)
    )
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _cut(name: str) -> "PreTokenizer":
    from tokenizers import Regex, pre_tokenizers

    if name in _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name not in _SPLITS:
        raise VocabularyError(f"the way {name[:40]!r} of cutting text into words is not known")
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in _SPLITS[name]]
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, spelled])


def _sentencepiece(header: Header) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = _texts(header, "tokens")
    gemma = str(header.metadata.get("general.architecture", "")).startswith("gemma")
    if gemma:  # runs of spaces are stored as spaces there, and merges follow the order, not the scores
        tokens = [SPACE * len(token) if " " in token and not token.strip() else token for token in tokens]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if "tokenizer.ggml.merges" in header.metadata:
        merges = [_pair(merge) for merge in _texts(header, "merges")]
    else:
        scores = (
            [-float(i) for i in range(len(tokens))] if gemma else header.metadata["tokenizer.ggml.scores"]
        )
        merges = _merges_of_scores(vocabulary, scores)
    unknown = header.metadata.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = header.metadata.get("tokenizer.ggml.add_space_prefix", not gemma)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=SPACE, prepend_scheme="first" if prefix else "never", split=False
    )
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
    return tokenizer


def _merges_of_scores(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to put a token together, the best scored token first: sentencepiece BPE as merges."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, index in vocabulary.items():
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(left, right) for left, right in parts if left in vocabulary and right in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(scores[index], len(left), len(right), left, right) for left, right in known]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _mark_special(tokenizer: "Tokenizer", header: Header, *, byte_level: bool) -> None:
    """Control tokens and the author's own ones are found in text as a whole."""
    from tokenizers import AddedToken

    spelled = set(byte_alphabet().values())
    types = header.metadata.get("tokenizer.ggml.token_type") or []
    for token, kind in zip(_texts(header, "tokens"), types, strict=False):
        # A control token outside the byte alphabet is a known slip of converters: it would become a new id.
        if kind in (CONTROL, UNKNOWN) and (not byte_level or set(token) <= spelled):
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == USER_DEFINED and tokenizer.token_to_id(token) is not None:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])


def _texts(header: Header, name: str) -> list[str]:
    values = header.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise VocabularyError(f"the list of {name} is missing")
    return values


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
