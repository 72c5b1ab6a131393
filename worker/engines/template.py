"""Chat templates: Jinja from the model's own file, rendered in a sandbox that can change nothing.

Follows what Hugging Face's chat templates may use (transformers, utils/chat_template_utils.py): trimmed
blocks, loop controls, `raise_exception`, `strftime_now`, `tojson`.
"""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from potluck.v1 import work_pb2
from worker.engines.engine import EngineError, JobError

PROMPT_CHARS_MAX = 16 * 1024 * 1024


class ChatTemplate:
    """Raises EngineError if the source is no template."""

    def __init__(self, source: str, *, bos: str, eos: str, now: Callable[[], datetime]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], autoescape=False
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
        self._tokens = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise EngineError("bad_chat_template", f"the model's chat template is broken: {error}") from error

    def render(self, messages: Sequence[work_pb2.ChatMessage]) -> str:
        """The prompt up to where the assistant's answer begins. Raises JobError if the template refuses."""
        try:
            text = self._template.render(
                messages=[_fields(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._tokens,
            )
        except _RefusedError as error:
            raise JobError("template_refused", f"this model does not take these messages: {error}") from None
        except Exception as error:  # a template is a program: whatever it trips over, the messages caused it
            raise JobError(
                "template_refused",
                f"this model's chat template fails on these messages ({type(error).__name__})",
            ) from None
        if len(text) > PROMPT_CHARS_MAX:
            raise JobError("context_too_long", f"the prompt has more than {PROMPT_CHARS_MAX} characters")
        return text


class _RefusedError(Exception):
    pass


def _refuse(why: object) -> NoReturn:
    raise _RefusedError(str(why))


def _tojson(value: Any, indent: int | None = None) -> str:
    """Not Jinja's own, which escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _fields(message: work_pb2.ChatMessage) -> dict[str, str]:
    # `developer` is OpenAI's newer word for `system`; the templates of open models know only that one.
    role = "system" if message.role == "developer" else message.role
    fields = {"role": role, "content": message.content}
    return fields | {"name": message.name} if message.name else fields
