"""A bridge to a server that answers in OpenAI's shapes: vLLM, SGLang, Ollama, llama-server, LM Studio...

The owner runs it already, or names a command that starts it; it then ends with this engine. What the server
has split (thoughts, calls) is one text again, in the forms that the pool reads; stop strings are watched
here, by the pool's own rule. No ids come, and the rendered prompt is never seen: a continuation is the prompt
that another engine told, or an answer that the server goes on with, or it is left to another worker.

Options: those of worker.bridges.Bridge.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from potluck.v1 import engine_pb2, work_pb2
from worker.bridges import Bridge
from worker.engines import bodies, engine
from worker.engines.canonical import Canonical
from worker.engines.pieces import Pieces, open_choices
from worker.engines.scores import logprobs_of
from worker.engines.served import Served, measure, probe, ready
from worker.engines.upstream import Upstream

SLOTS_DEFAULT: Final = 8
CONTEXT_TOKENS_DEFAULT: Final = 4096
CLOSE_S_MAX: Final = 1.5  # the process has two seconds
TOKENS_UNSEEN_MAX: Final = 16  # end tokens and marks that leave no text


@dataclass(slots=True)
class _Running:
    start: engine_pb2.Start
    done: engine_pb2.Done
    task: "asyncio.Task[None] | None" = None
    unwanted: bool = False
    choices: list[Pieces] = field(default_factory=list)


class OpenAI:
    def __init__(self, emit: engine.Emit, die: Callable[[], None]) -> None:
        self._emit = emit
        self._die = die
        self._upstream: Upstream
        self._served = Served("")
        self._guard: asyncio.subprocess.Process | None = None
        self._running: dict[engine.Key, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def load(self, load: engine_pb2.Load) -> engine_pb2.Loaded:
        try:
            bridge = Bridge.parse(dict(load.options))
            key = bridge.key()
        except (ValueError, OSError) as error:
            raise engine.EngineError("bad_option", f"[bridge.{load.model}]: {error}") from None
        self._upstream = Upstream(bridge, key)
        if bridge.command:
            await self._start_server(bridge)
        self._served = served = await ready(self._upstream, bridge, self._guard)
        features = bridge.features if bridge.features is not None else await probe(self._upstream, served)
        prefill, decode = await measure(self._upstream, served)
        if self._guard is not None:
            self._watch(self._server_ended(self._guard))
        limit = served.context_tokens or CONTEXT_TOKENS_DEFAULT
        return engine_pb2.Loaded(
            numerics=f"openai/{served.kind}/{served.model}"[:200],
            sampler="native",
            slots=load.slots or SLOTS_DEFAULT,
            context_tokens=min(load.context_tokens or limit, limit),
            kinds=load.kinds or ("chat", "completion", "embedding"),
            prefill_tokens_per_s=prefill,
            decode_tokens_per_s=decode,
            features=features,
        )

    async def _start_server(self, bridge: Bridge) -> None:
        self._guard = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "worker.engines.guard", *bridge.command),
            stdin=asyncio.subprocess.PIPE,
            stdout=2,  # the daemon keeps the last lines
        )

    async def _server_ended(self, guard: asyncio.subprocess.Process) -> None:
        code = await guard.wait()
        sys.stderr.write(f"the server that the bridge started ended with code {code}\n")
        self._die()  # the daemon starts both anew

    def start(self, start: engine_pb2.Start) -> None:
        running = _Running(start, engine_pb2.Done(attempt=start.attempt))
        self._running[engine.key_of(start.attempt)] = running
        running.task = self._watch(self._work(running))

    def stop(self, attempt: work_pb2.Attempt) -> None:
        running = self._running.get(engine.key_of(attempt))
        if running is not None and running.task is not None and not running.unwanted:
            running.unwanted = True
            running.task.cancel()  # which closes the connection: that is how a server hears of it

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._upstream.close()
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._guard.wait(), CLOSE_S_MAX)

    def _watch(self, work: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- an attempt ----------------------------------------------------------------------------------------

    async def _work(self, running: _Running) -> None:
        attempt = running.start.attempt
        try:
            embeds = running.start.work.HasField("embedding")
            await (self._vectors(running) if embeds else self._answer(running))
            event = engine_pb2.EngineEvent(done=running.done)
        except engine.EngineError as error:
            event = engine.failed(attempt, error)
            if error.code == "bridge_down":
                self._watch(self._is_it_there())
        except asyncio.CancelledError:
            event = engine.stopped(attempt)
        self._running.pop(engine.key_of(attempt), None)
        self._emit(event)

    async def _is_it_there(self) -> None:
        """A server that is gone is loaded anew by the daemon, ever more slowly, and reported so."""
        try:
            await self._upstream.ask("/v1/models")
        except engine.EngineError as error:
            if error.code == "bridge_down":
                sys.stderr.write(f"{error}\n")
                self._die()

    async def _answer(self, running: _Running) -> None:
        start = running.start
        sampling = engine.sampling_of(start.work)
        running.choices = open_choices(sampling, start.continuation, sampling.max_tokens)
        before = {delivered.choice: delivered.text for delivered in start.continuation.delivered}
        asked = [
            bodies.request_of(start, self._served, pieces, before.get(pieces.choice, ""))
            for pieces in running.choices
        ]
        self._emit(engine.started(start.attempt, bodies.prompt_of(start)))
        async with _together() as group:
            for pieces, (path, body) in zip(running.choices, asked, strict=True):
                if pieces.exhausted:
                    self._emit(engine.output(start.attempt, [pieces.end("length")]))
                else:
                    group.create_task(self._choice(running, pieces, path, body))
        running.done.usage.output_tokens = sum(p.tokens - p.inherited for p in running.choices)

    async def _choice(self, running: _Running, pieces: Pieces, path: str, body: dict[str, Any]) -> None:
        canonical, reason, begun = Canonical(), "", pieces.offset
        async with contextlib.aclosing(self._upstream.stream(path, body)) as events:
            async for event in events:
                self._count(running, pieces, event.get("usage"), begun)
                choices = event.get("choices")
                if reason or not isinstance(choices, list) or not choices:
                    continue  # after the last text only the usage comes
                choice = choices[0]
                text = choice.get("text") or canonical.feed(choice.get("delta") or {})
                reason = choice.get("finish_reason") or ""
                if reason:
                    text += canonical.end()
                self._say(running, pieces, text, logprobs_of(choice) if "delta" in choice else [])
                if pieces.finish_reason:
                    return  # a stop string: leaving closes the connection
        if not reason:
            raise engine.EngineError("bridge_answer", "the server's answer ended in the middle")
        delta = pieces.end("length" if reason == "length" else "stop")
        self._emit(engine.output(running.start.attempt, [delta]))

    def _say(self, running: _Running, pieces: Pieces, text: str, scores: list[work_pb2.TokenLogprob]) -> None:
        if not text:
            return
        room = max(0, pieces.tokens_max - pieces.tokens)
        if (delta := pieces.add(text, min(1, room), scores)) is not None:
            self._emit(engine.output(running.start.attempt, [delta]))

    def _count(self, running: _Running, pieces: Pieces, usage: Any, begun: int) -> None:
        """Take the server's counts for what can be true of what it sent."""
        if not isinstance(usage, dict):
            return
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if isinstance(prompt, int) and 0 <= prompt < 1 << 31:
            running.done.usage.prompt_tokens = prompt
        most = 4 * (pieces.offset - begun) + TOKENS_UNSEEN_MAX  # a token is at least a byte
        if isinstance(output, int) and output > min(most, pieces.tokens_max - pieces.inherited + 1):
            sys.stderr.write(f"the server claims {output} tokens for a text that holds at most {most}\n")

    # -- vectors -------------------------------------------------------------------------------------------

    async def _vectors(self, running: _Running) -> None:
        done = running.done
        for item in running.start.work.embedding.inputs:
            body = {"model": self._served.model, "input": [list(item.ids) or item.text]}
            answer = await self._upstream.ask("/v1/embeddings", body)
            try:
                values = [float(value) for value in answer["data"][0]["embedding"]]
                tokens = int(answer["usage"]["prompt_tokens"])
            except (KeyError, IndexError, TypeError, ValueError):
                raise engine.EngineError("bridge_answer", "the server's answer holds no vector") from None
            done.embeddings.append(work_pb2.Embedding(values=values))
            done.embedding_tokens.append(tokens)
        done.usage.prompt_tokens = sum(done.embedding_tokens)


@contextlib.asynccontextmanager
async def _together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose first failure is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except* engine.EngineError as failures:
        raise failures.exceptions[0] from None
