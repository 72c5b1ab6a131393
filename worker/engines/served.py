"""What a server is and can do: found out when it is loaded, by a few small requests."""

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from typing import Any, Final

from worker.bridges import Bridge
from worker.engines.engine import EngineError, JobError
from worker.engines.upstream import Upstream

POLL_S: Final = 0.25
FOUND_S_MAX: Final = 10.0  # for a server that should be there already
PROBE_TOKENS: Final = 48
MEASURE_TOKENS: Final = 24
MODELS_NAMED_MAX: Final = 8
# Who `owned_by` of /v1/models names, and has parameters beyond OpenAI's.
_EXTENDED: Final = frozenset({"vllm", "sglang", "llamacpp"})
_SCHEMA: Final = {
    "type": "object",
    "properties": {"ok": {"type": "integer", "enum": [7]}},
    "required": ["ok"],
    "additionalProperties": False,
}
_HELLO: Final = [{"role": "user", "content": "Say hello."}]


@dataclass(frozen=True, slots=True)
class Served:
    """A model of a server. `kind`: who made the server, as it says itself; "" if it does not."""

    model: str
    kind: str = ""
    context_tokens: int = 0  # 0: it does not say

    @property
    def extended(self) -> bool:
        return self.kind in _EXTENDED


async def ready(upstream: Upstream, bridge: Bridge, process: asyncio.subprocess.Process | None) -> Served:
    """Wait until the server tells its models. Raises EngineError with what is missing."""
    until = time.monotonic() + (
        bridge.start_timeout_s if process else min(FOUND_S_MAX, bridge.start_timeout_s)
    )
    while True:
        try:
            return await _look(upstream, bridge.model)
        except EngineError as error:
            if error.code == "no_such_model" or time.monotonic() > until:
                raise
        if process is not None and process.returncode is not None:
            raise EngineError("bridge_down", f"the server ended with code {process.returncode} at its start")
        if process is None:
            await asyncio.sleep(POLL_S)
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), POLL_S)


async def _look(upstream: Upstream, wanted: str) -> Served:
    """Raises EngineError: `no_such_model` if waiting will not help."""
    try:
        answer = await upstream.ask("/v1/models")
    except EngineError as error:
        if error.code != "bridge_failed" or not wanted:
            raise
        answer = None  # some servers list only what lies in a cache of theirs, or fail where there is none
    data = answer.get("data") if isinstance(answer, dict) else None
    found = {str(item["id"]): item for item in data or () if isinstance(item, dict) and "id" in item}
    names = ", ".join(list(found)[:MODELS_NAMED_MAX]) or "none"
    if not wanted and len(found) != 1:
        raise EngineError(
            "no_such_model", f"the server has several models or none: say `model`. It has: {names}"
        )
    name = wanted or next(iter(found))
    if name not in found and not await _answers(upstream, name):
        raise EngineError("no_such_model", f"the server has no model {name!r}. It has: {names}")
    item = found.get(name, {})
    meta = item.get("meta")
    sizes = (item.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None)
    context = next((size for size in sizes if isinstance(size, int) and size > 0), 0)
    return Served(name, str(item.get("owned_by", ""))[:40], context)


async def _answers(upstream: Upstream, model: str) -> bool:
    """A model that is not listed may be there all the same. Raises EngineError if the server is not."""
    try:
        await upstream.ask("/v1/chat/completions", {"model": model, "messages": _HELLO, "max_tokens": 1})
    except JobError:
        return False
    except EngineError as error:
        if error.code != "bridge_failed":
            raise
        return False
    return True


async def probe(upstream: Upstream, served: Served) -> list[str]:
    """Which of the pool's features the server really has: it is asked for each, and its answer looked at."""
    quick: dict[str, Any] = {
        "model": served.model,
        "messages": _HELLO,
        "max_tokens": PROBE_TOKENS,
        "temperature": 0,
    }
    if served.extended:
        quick["chat_template_kwargs"] = {"enable_thinking": False}
    function = {"name": "greet", "description": "Greets.", "parameters": _SCHEMA}
    tools = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": _SCHEMA}}
    features = []
    asked = [{"role": "user", "content": "Say hello with the tool `greet`."}]
    if (await _said(upstream, quick | tools | {"messages": asked})).get("tool_calls"):
        features.append("tools")
    with contextlib.suppress(ValueError, TypeError):
        if json.loads((await _said(upstream, quick | {"response_format": form})).get("content") or "") == {
            "ok": 7
        }:
            features.append("json_schema")
    plain = await _said(upstream, {**quick, "chat_template_kwargs": {}} if served.extended else quick)
    if plain.get("reasoning_content") or plain.get("reasoning") or "<think>" in str(plain.get("content")):
        features.append("reasoning")
    return features


async def _said(upstream: Upstream, body: dict[str, Any]) -> dict[str, Any]:
    """The message of an answer; empty if the server refuses such requests."""
    try:
        answer = await upstream.ask("/v1/chat/completions", body)
        message = answer["choices"][0]["message"]
    except (JobError, KeyError, IndexError, TypeError):
        return {}
    except EngineError as error:
        if error.code == "bridge_down":
            raise
        return {}
    return message if isinstance(message, dict) else {}


async def measure(upstream: Upstream, served: Served) -> tuple[float, float]:
    """Prefill and decode tokens/s of one stream; 0 where the server does not let it be seen."""
    prompt = "Count from one to one hundred in words. " * 8
    body = {
        "model": served.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MEASURE_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun, times, usage = time.monotonic(), list[float](), dict[str, Any]()
    try:
        async for event in upstream.stream("/v1/chat/completions", body):
            if event.get("choices"):
                times.append(time.monotonic())
            if isinstance(event.get("usage"), dict):
                usage = event["usage"]
    except JobError:
        return 0.0, 0.0  # it has no chat
    if len(times) < 3:
        return 0.0, 0.0
    read = usage.get("prompt_tokens") or len(prompt) // 4
    return read / max(times[0] - begun, 1e-6), (len(times) - 1) / max(times[-1] - times[0], 1e-6)
