#!/usr/bin/env python3
"""The emulator behind the least that speaks the OpenAI API over HTTP: what proxies stand in front of.

    benchmarks/front.py PORT [--ttft-ms 20] [--tpot-ms 5]

The engine runs inside this process. Chats only, streamed or whole; nothing is checked, nobody is asked for a
key.
"""

import argparse
import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import orjson
import uvicorn
from starlette.types import Receive, Scope, Send

from potluck.v1 import engine_pb2, work_pb2
from worker.engines.emulator import Emulator

SLOTS = 256
JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream")]


class Front:
    """An ASGI application."""

    def __init__(self, options: dict[str, str]) -> None:
        self._options = options
        self._engine: Emulator | None = None
        self._waiting: dict[str, asyncio.Queue[engine_pb2.EngineEvent]] = {}
        self._count = itertools.count(1)

    def _hear(self, event: engine_pb2.EngineEvent) -> None:
        if (body := event.WhichOneof("body")) in {"output", "done", "failed"}:
            self._waiting[getattr(event, body).attempt.job_id].put_nowait(event)

    async def _loaded(self) -> Emulator:
        if self._engine is None:
            self._engine = Emulator(self._hear, lambda: None)
            await self._engine.load(engine_pb2.Load(engine="emulator", slots=SLOTS, options=self._options))
        return self._engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await _say(send, {"object": "list", "data": []})
            return
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked = orjson.loads(raw)
        head = {"id": f"chatcmpl-{next(self._count)}", "created": 0, "model": asked["model"]}
        if asked.get("stream"):
            await self._stream(asked, head, send)
        else:
            await self._whole(asked, head, send)

    async def _events(self, asked: dict[str, Any], job_id: str) -> AsyncIterator[engine_pb2.EngineEvent]:
        engine, queue = await self._loaded(), asyncio.Queue[engine_pb2.EngineEvent]()
        self._waiting[job_id] = queue
        work = work_pb2.Work()
        for message in asked["messages"]:
            work.chat.messages.add(role=message["role"], content=message["content"])
        tokens = asked.get("max_tokens") or asked["max_completion_tokens"]
        work.chat.sampling.CopyFrom(work_pb2.Sampling(seed=next(self._count), max_tokens=tokens, choices=1))
        attempt = work_pb2.Attempt(job_id=job_id, number=1)
        engine.start(engine_pb2.Start(attempt=attempt, work=work))
        try:
            while True:
                event = await queue.get()
                yield event
                if not event.HasField("output"):
                    return
        finally:
            engine.stop(attempt)
            del self._waiting[job_id]

    async def _stream(self, asked: dict[str, Any], head: dict[str, Any], send: Send) -> None:
        head = {**head, "object": "chat.completion.chunk"}
        opening = b"data: " + orjson.dumps(head)[:-1] + b',"choices":[{"index":0,"delta":'
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        role = opening + b'{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
        async for event in self._events(asked, head["id"]):
            data, role = role, b""
            for delta in event.output.deltas:
                text = orjson.dumps(delta.text)
                data += opening + b'{"content":' + text + b'},"finish_reason":null}]}\n\n'
                if delta.finish_reason:
                    reason = orjson.dumps(delta.finish_reason)
                    data += opening + b'{},"finish_reason":' + reason + b"}]}\n\n"
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def _whole(self, asked: dict[str, Any], head: dict[str, Any], send: Send) -> None:
        text, reason, used = "", "", work_pb2.Usage()
        async for event in self._events(asked, head["id"]):
            for delta in event.output.deltas:
                text, reason = text + delta.text, delta.finish_reason
            used = event.done.usage
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        usage = {
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.output_tokens,
            "total_tokens": used.prompt_tokens + used.output_tokens,
        }
        await _say(send, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})


async def _say(send: Send, body: dict[str, Any]) -> None:
    raw = orjson.dumps(body)
    headers = [*JSON, (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("port", type=int)
    parser.add_argument("--ttft-ms", default="20")
    parser.add_argument("--tpot-ms", default="5")
    given = parser.parse_args()
    front = Front({"ttft_ms": given.ttft_ms, "tpot_ms": given.tpot_ms})
    uvicorn.run(front, host="127.0.0.1", port=given.port, log_level="error", access_log=False, lifespan="off")


if __name__ == "__main__":
    main()
