"""What a server is asked, in OpenAI's shapes. Pure.

Beyond OpenAI's own parameters only those that the server is known to have: `top_k`, `chat_template_kwargs`
and `continue_final_message` of vLLM, SGLang and llama-server.
"""

import json
from typing import Any, Final

from potluck.v1 import engine_pb2, work_pb2
from worker.engines import engine, noise
from worker.engines.formats import MARKS
from worker.engines.pieces import Pieces
from worker.engines.served import Served

SEED_MAX: Final = (1 << 31) - 1  # every server takes these
_MARKS: Final = tuple(mark for marks in MARKS.values() for mark in marks)


def prompt_of(start: engine_pb2.Start) -> work_pb2.RenderedPrompt:
    """How the answer is to be read; the prompt's text is known for completions only."""
    if start.continuation.HasField("prompt"):
        return start.continuation.prompt
    if start.work.HasField("completion"):
        work = start.work.completion
        return work_pb2.RenderedPrompt(text=work.prompt, ids=work.prompt_ids)
    tools = "hermes" if start.work.chat.tools else ""
    return work_pb2.RenderedPrompt(format=work_pb2.OutputFormat(reasoning="think", tools=tools))


def request_of(
    start: engine_pb2.Start, served: Served, pieces: Pieces, said: str
) -> tuple[str, dict[str, Any]]:
    """Path and body for one choice, of which `said` is delivered already. Raises EngineError."""
    sampling = engine.sampling_of(start.work)
    body = _sampling(sampling, served, pieces)
    if start.work.HasField("completion") or (said and engine.knows_prompt(start)):
        return "/v1/completions", body | {"prompt": _prompt(start, said)}
    chat = start.work.chat
    body["messages"] = [_message(message) for message in chat.messages]
    body |= _tools(chat) | _structure(chat) | _effort(chat, served)
    if sampling.logprobs:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    if said:
        body |= _going_on(chat, served, said)
        body["messages"].append({"role": "assistant", "content": said})
    return "/v1/chat/completions", body


def _sampling(sampling: work_pb2.Sampling, served: Served, pieces: Pieces) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": served.model,
        "max_tokens": pieces.tokens_max - pieces.tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": noise.stream(sampling.seed, pieces.choice, pieces.tokens)
        & 0x7FFFFFFF,  # 31 bits: every server takes them
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body | ({"top_k": sampling.top_k} if sampling.top_k and served.extended else {})


def _prompt(start: engine_pb2.Start, said: str) -> str | list[int]:
    prompt = start.continuation.prompt
    if not engine.knows_prompt(start):
        work = start.work.completion
        prompt = work_pb2.RenderedPrompt(text=work.prompt, ids=work.prompt_ids)
    if not prompt.ids:
        return prompt.text + said
    if said and not prompt.text:
        raise _not_here("the prompt came as token ids, and this server tells none")
    return prompt.text + said if said else list(prompt.ids)


def _going_on(chat: work_pb2.ChatWork, served: Served, said: str) -> dict[str, Any]:
    held = chat.HasField("structure") or chat.tool_choice in ("required", "function")
    if not served.extended or held or any(mark in said for mark in _MARKS):
        raise _not_here("this server cannot go on in the middle of such an answer")
    return {"continue_final_message": True, "add_generation_prompt": False}


def _not_here(why: str) -> engine.EngineError:
    return engine.EngineError("cannot_continue", why, fault=work_pb2.FAULT_NONE)


def _message(message: work_pb2.ChatMessage) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        fields["name"] = message.name
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.reasoning:
        fields["reasoning_content"] = message.reasoning
    return fields


def _tools(chat: work_pb2.ChatWork) -> dict[str, Any]:
    if not chat.tools or chat.tool_choice == "none":
        return {}
    choice: Any = chat.tool_choice or "auto"
    if choice == "function":
        choice = {"type": "function", "function": {"name": chat.tool_name}}
    tools = [{"type": "function", "function": _function(tool)} for tool in chat.tools]
    return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": chat.parallel_tool_calls}


def _function(tool: work_pb2.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    function["parameters"] = _json(tool.parameters or '{"type": "object", "properties": {}}')
    return function | ({"strict": True} if tool.strict else {})


def _structure(chat: work_pb2.ChatWork) -> dict[str, Any]:
    if not chat.HasField("structure"):
        return {}
    if chat.structure.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    schema = {"name": "answer", "strict": True, "schema": _json(chat.structure.schema)}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _effort(chat: work_pb2.ChatWork, served: Served) -> dict[str, Any]:
    if not chat.reasoning_effort:
        return {}
    if not served.extended:
        return {"reasoning_effort": chat.reasoning_effort}
    thinks = chat.reasoning_effort != "none"
    return {"chat_template_kwargs": {"enable_thinking": thinks, "thinking": thinks}}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise engine.JobError("invalid_schema", "a JSON schema of the request is no JSON") from None
