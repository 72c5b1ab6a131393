"""Chat templates run in a sandbox, refuse in words, and GGUF headers are read without trust."""

import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gguf
import pytest

from potluck.v1 import work_pb2
from worker.engines.engine import EngineError, JobError
from worker.engines.metadata import model_digest, read_metadata
from worker.engines.template import ChatTemplate


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos="<s>", eos="</s>", now=lambda: datetime(2026, 11, 23, tzinfo=UTC))


def render(source: str, *messages: work_pb2.ChatMessage, **fields: Any) -> str:
    return template(source).render(work_pb2.ChatWork(messages=messages, **fields))


def said(content: str, role: str = "user", name: str = "") -> work_pb2.ChatMessage:
    return work_pb2.ChatMessage(role=role, content=content, name=name)


def test_a_template_sees_messages_tokens_and_the_date() -> None:
    source = (
        "{{ bos_token }}{{ strftime_now('%d %B %Y') }}\n"
        "{% for m in messages %}\n  {% if m.role == 'tool' %}{% continue %}{% endif %}"
        "[{{ m.role }}{% if m.name %}/{{ m.name }}{% endif %}]{{ m.content | tojson }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    prompt = render(source, said("é<b>", "developer"), said("no", "tool"), said("hi", name="Ann"))
    assert prompt == '<s>23 November 2026\n[system]"é<b>"[user/Ann]"hi">'


def test_a_refusal_is_the_jobs_fault_in_the_templates_words() -> None:
    refusing = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}ok"
    with pytest.raises(JobError, match="does not take these messages: user first"):
        render(refusing, said("x", "assistant"))
    assert render(refusing, said("x")) == "ok"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append('x') }}",
        "{{ messages[0].update(role='x') }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{{ undefined_function() }}",
    ],
)
def test_a_template_that_reaches_outside_fails_the_job_without_a_trace(source: str) -> None:
    with pytest.raises(JobError) as raised:
        render(source, said("secret"))
    assert raised.value.code == "template_refused"
    assert "secret" not in str(raised.value)


def test_a_source_that_is_no_template_is_the_models_fault() -> None:
    with pytest.raises(EngineError) as raised:
        template("{% for %}")
    assert raised.value.code == "bad_chat_template"


def write_gguf(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_file_type(3)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", "é"])
    writer.add_token_types([3, 3, 1])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_header_of_a_gguf_file_says_what_an_engine_needs(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    metadata = read_metadata(tmp_path / "tiny.gguf")
    assert (metadata.token("bos"), metadata.token("eos"), metadata.token("unknown")) == ("<s>", "</s>", "")
    assert metadata.values["tokenizer.ggml.tokens"] == ["<s>", "</s>", "é"]
    assert (metadata.context_tokens, metadata.dtype, metadata.bos_id) == (4096, "q4_1", 0)
    assert metadata.chat_template == "{{ messages }}"
    assert not metadata.adds_bos


def test_a_broken_gguf_file_is_named_and_harms_nothing(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    broken = tmp_path / "broken.gguf"
    header = struct.pack("<IIQQ", 0x46554747, 3, 0, 1)
    for data in (
        b"",
        b"GGUF",
        whole[:200],
        b"\0" * 64,
        header + b"\xff" * 32,
        whole[:8] + b"\xff" * 16 + whole[24:],
    ):
        broken.write_bytes(data)
        with pytest.raises(EngineError, match=r"broken.gguf (cannot be read as GGUF|is empty)"):
            read_metadata(broken)


def test_a_model_is_named_by_its_bytes(tmp_path: Path) -> None:
    digest = "ab" * 32
    for name, data in (("one", b"1"), ("two", b"2"), (digest, b"3")):
        (tmp_path / name).write_bytes(data)
    one, two, named = (tmp_path / name for name in ("one", "two", digest))
    assert model_digest([one]) == "6b86b273ff34"  # sha256 of "1"
    assert model_digest([named]) == "ab" * 6  # a verified file is not read again
    assert model_digest([one, two]) == model_digest([two, one]) != model_digest([one])
