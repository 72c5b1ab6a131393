"""What is learned of an example: the assistant's turns with their ends, in the model's own template, and nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fixtures_templates as templates
import pytest
from fixtures_tiny import CHAT, tiny_tokenizer
from fixtures_training import write_lines
from tokenizers import AddedToken

from potluck.training_data import Chat, Completion, Preference, Turn, examples
from worker.engines.engine import JobError
from worker.engines.weights import Text
from worker.training.counting import lengths
from worker.training.lines import Lines
from worker.training.packing import Row, Tokens, learns, micro_batches
from worker.training.reading import Reader

CONTROL = (
    *("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]", "</s>", "<s>"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
)
# As Qwen3 has it: thoughts stand in the last answer alone, and an empty one is put where there is none.
QWEN3 = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{{- m.content }}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
DATED = "{{ strftime_now('%Y-%m-%d') }}" + CHAT


def id_of(tokenizer: Any, name: str) -> int:
    return int(tokenizer.token_to_id(name))


def text_of(template: str, *, begin: bool = False, end: str = "<|im_end|>") -> Text:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL])
    return Text(
        tokenizer=tokenizer,
        begin_ids=(id_of(tokenizer, "<s>"),) if begin else (),
        end_id=id_of(tokenizer, end) if end else None,
        bos="<s>",
        eos="</s>",
        chat_template=template,
    )


# Jinja drops the last newline of CHAT, so its answers begin with one; the published templates write it like this.
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def reader(template: str = PLAIN, tokens_max: int = 1000, **text: Any) -> Reader:
    made = text_of(template, **text)
    ends = {id_of(made.tokenizer, name) for name in ("<|im_end|>", "<|eot_id|>", "</s>")}
    return Reader(made, ends, tokens_max, made.tokenizer.get_vocab_size())


def words(tokens: Tokens, places: Sequence[int] | None = None) -> str:
    ids = tokens.ids if places is None else [tokens.ids[place] for place in places]
    return str(tiny_with_control().decode(list(ids), skip_special_tokens=False))


def tiny_with_control() -> Any:
    return text_of("").tokenizer


def learned(tokens: Tokens) -> list[str]:
    """The runs of tokens that are learned, as text."""
    runs: list[list[int]] = []
    for place in tokens.targets:
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return [words(tokens, run) for run in runs]


def turns(*said: str) -> tuple[Turn, ...]:
    """user, assistant, user, ..."""
    return tuple(Turn(("user", "assistant")[index % 2], text) for index, text in enumerate(said))


FAMILIES = {
    "chatml": (CHAT, "<|im_end|>"),
    "smollm2": (templates.SMOLLM2, "<|im_end|>"),
    "qwen": (templates.QWEN, "<|im_end|>"),
    "qwen2.5": (templates.QWEN_PLAIN, "<|im_end|>"),
    "llama3": (templates.LLAMA3, "<|eot_id|>"),
    "mistral": (templates.MISTRAL, "</s>"),
}


@pytest.mark.parametrize(("template", "end"), FAMILIES.values(), ids=FAMILIES)
def test_each_answer_is_learned_with_its_end_and_without_its_header(template: str, end: str) -> None:
    chat = Chat(turns("ask a", "think b", "ask c", "stop d"))
    (tokens,) = reader(template).read(chat, "sft")
    assert [run.strip() for run in learned(tokens)] == [f"think b{end}", f"stop d{end}"]
    assert words(tokens).endswith(f"stop d{end}"), "nobody learns from what follows"
    assert words(tokens).count("ask") == 2


@pytest.mark.parametrize(("template", "end"), FAMILIES.values(), ids=FAMILIES)
def test_a_turn_of_weight_zero_is_read_and_not_learned(template: str, end: str) -> None:
    chat = Chat((Turn("user", "ask"), Turn("assistant", "think b", 0), *turns("ask c", "stop d")))
    (tokens,) = reader(template).read(chat, "sft")
    assert [run.strip() for run in learned(tokens)] == [f"stop d{end}"]
    assert "think b" in words(tokens)


def test_what_the_template_puts_before_an_answer_is_learned_where_the_model_must_say_it() -> None:
    """Qwen3 is asked without the empty thought, so it says it; in earlier turns the template has none."""
    (tokens,) = reader(QWEN3).read(Chat(turns("ask", "think b", "ask c", "stop d")), "sft")
    assert learned(tokens) == ["think b<|im_end|>", "<think>\n\n</think>\n\nstop d<|im_end|>"]


def test_a_template_that_changes_the_question_once_it_is_answered_is_refused() -> None:
    """DeepSeek R1 is asked with an open thought, which is not there in what was answered."""
    with pytest.raises(JobError, match="writes an answer in another way than it asks for one") as raised:
        reader(templates.DEEPSEEK_R1).read(Chat(turns("ask", "b")), "sft")
    assert raised.value.code == "bad_chat_template"


def test_a_template_that_changes_the_answer_is_refused() -> None:
    shouting = CHAT.replace("m.content", "m.content | upper")
    with pytest.raises(JobError, match="writes an answer in another way"):
        reader(shouting).read(Chat(turns("ask", "b")), "sft")


def test_a_template_without_ends_is_refused() -> None:
    with pytest.raises(JobError, match="the model would learn never to stop"):
        reader(NO_END).read(Chat(turns("ask", "b")), "sft")


def test_a_template_that_refuses_a_role_says_so() -> None:
    picky = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    with pytest.raises(JobError, match="does not take these messages: no system"):
        reader(picky).read(Chat((Turn("system", "a"), *turns("ask", "b"))), "sft")


def test_without_a_template_there_are_no_chats() -> None:
    with pytest.raises(JobError, match="no chat template: use prompts"):
        reader("").read(Chat(turns("ask", "b")), "sft")


def test_the_date_is_the_same_on_every_day() -> None:
    (tokens,) = reader(DATED).read(Chat(turns("ask", "b")), "sft")
    assert words(tokens).startswith("2024-07-26")


def test_words_of_the_question_that_come_again_are_not_mistaken_for_the_answer() -> None:
    (tokens,) = reader().read(Chat(turns("b<|im_end|>", "b")), "sft")
    assert learned(tokens) == ["b<|im_end|>"]
    assert tokens.targets[-1] == len(tokens.ids) - 1


def test_emoji_of_several_tokens_are_learned_whole() -> None:
    (tokens,) = reader().read(Chat(turns("🎉", "é🎉 ü")), "sft")
    assert learned(tokens) == ["é🎉 ü<|im_end|>"]


def test_a_completion_is_plain_text_and_its_end() -> None:
    (tokens,) = reader(begin=True).read(Completion("ask: ", "think"), "sft")
    assert words(tokens) == "<s>ask: think<|im_end|>"
    assert learned(tokens) == ["think<|im_end|>"]
    (tokens,) = reader(end="").read(Completion("", "think"), "sft")
    assert words(tokens) == "think"
    assert tokens.targets[0] == 1, "nothing is before the first one to predict it from"


def test_of_a_pair_both_answers_are_read_and_nothing_else_is_learned() -> None:
    pair = Preference(turns("ask", "think", "more"), "b", "stop d")
    unit = reader().read(pair, "dpo")
    assert [learned(tokens) for tokens in unit] == [["b<|im_end|>"], ["stop d<|im_end|>"]]
    assert all("think" in words(tokens) for tokens in unit)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_method_and_the_examples_belong_together(method: str) -> None:
    example = Completion("a", "b") if method == "dpo" else Preference(turns("a"), "b", "c")
    with pytest.raises(JobError, match=f"no example for the method {method}"):
        reader().read(example, method)


def test_what_is_too_long_is_cut_at_the_end() -> None:
    chat = Chat(turns("ask", "think " * 5, "ask", "stop"))
    (whole,) = reader().read(chat, "sft")
    (cut,) = reader(tokens_max=20).read(chat, "sft")
    assert cut.ids == whole.ids[: len(cut.ids)]
    assert len(cut.ids) == 20
    assert cut.targets == tuple(place for place in whole.targets if place < 20)
    (none,) = reader(tokens_max=5).read(chat, "sft")
    assert (len(none.ids), none.targets) == (5, ())
    assert lengths(reader(tokens_max=5), [chat], "sft") == [0], "nothing is left to learn: it is passed over"


def test_tokens_are_counted_as_they_are_trained() -> None:
    chats = [Chat(turns("ask", "b" * length)) for length in (1, 9)]
    units = [reader().read(chat, "sft") for chat in chats]
    assert lengths(reader(), chats, "sft") == [len(unit[0].ids) for unit in units]
    pair = Preference(turns("ask"), "b", "stop d")
    assert lengths(reader(), [pair], "dpo") == [sum(len(tokens.ids) for tokens in reader().read(pair, "dpo"))]


def test_a_vocabulary_beyond_the_model_is_refused() -> None:
    made = text_of(CHAT)
    with pytest.raises(JobError, match="this model has 100"):
        Reader(made, {1}, 1000, 100).read(Chat(turns("🎉", "b")), "sft")


# -- the file


def test_lines_are_those_that_the_upload_was_checked_by(tmp_path: Path) -> None:
    """Blank lines, line ends of Windows, a byte order mark and a last line without an end."""
    raw = (
        b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\r\n\n  \n{"prompt": "c", "completion": "d"}\n\t\r\n'
    )
    path = tmp_path / "examples.jsonl"
    path.write_bytes(raw + b'{"prompt": "e", "completion": "f"}')
    with Lines(path) as lines:
        assert [lines[index] for index in range(len(lines))] == list(examples(path))
        assert len(lines) == 3
        with pytest.raises(JobError, match="there are only 3"):
            lines[3]


def test_what_is_no_example_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_bytes(b'{"prompt": "a"}\nno\n' + b" " * (5 << 20) + b"\n")
    with Lines(path) as lines:
        for index, why in enumerate(("completion: a text is needed", "it is not JSON", "longer than")):
            with pytest.raises(JobError, match=why):
                lines[index]
    with pytest.raises(JobError, match="is empty"):
        Lines(write_lines(path, []))


# -- rows


def sequence(length: int, first: int = 1) -> tuple[Tokens, ...]:
    return (Tokens(tuple(range(100, 100 + length)), tuple(range(first, length))),)


def test_micro_batches_keep_the_order_and_the_size() -> None:
    units = [sequence(length) for length in (5, 5, 3, 20, 1)]
    sizes = [[len(unit[0].ids) for unit in batch] for batch in micro_batches(units, 10)]
    assert sizes == [[5, 5], [3], [20], [1]]
    assert list(micro_batches([], 10)) == []


def test_a_row_has_no_padding_and_predicts_no_first_token() -> None:
    row = Row.of([sequence(3), (Tokens((7, 8), (1,)), Tokens((7, 9, 9), (2,)))])
    assert row.ids == [100, 101, 102, 7, 8, 7, 9, 9]
    assert row.positions == [0, 1, 2, 0, 1, 0, 1, 2]
    assert row.bounds == [(0, 3), (3, 5), (5, 8)]
    assert row.places == [0, 1, 3, 6]
    assert row.targets == [101, 102, 8, 9]
    assert row.counts == [2, 1, 1]


def test_a_pair_of_which_an_answer_is_cut_off_teaches_nothing() -> None:
    assert learns((Tokens((1, 2), (1,)), Tokens((1, 2), (1,))))
    assert not learns((Tokens((1, 2), (1,)), Tokens((1, 2), ())))
