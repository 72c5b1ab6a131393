"""llama.cpp through xllamacpp: GGUF files, several streams at once, embeddings.

Prompts are rendered here and go to /completions as text, so that chat, completion and continuation are one
path. Its stream carries no token ids for all text (a character of several tokens comes with one), hence
none are sent: a continuation is the rendered prompt + the delivered text. Stop strings are watched here, by
the pool's own rule.

Its Server always listens. It is given a unix socket in a private folder, or where there is none a loopback
port with a random key. Nobody connects to it: requests are function calls.

Options: batch_tokens (how much of a prompt is read between two steps of the others), gpu_layers.
"""

import asyncio
import gc
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import xllamacpp

from potluck.v1 import engine_pb2, work_pb2
from worker.engines import engine, noise
from worker.engines.chat import Chat
from worker.engines.metadata import Metadata, model_digest, read_metadata
from worker.engines.pieces import Pieces, open_choices
from worker.engines.scores import logprobs_of
from worker.engines.validated import GoingOn, Validated

SLOTS_DEFAULT = 4
CONTEXT_TOKENS_DEFAULT = 4096
CONTEXT_STEP_TOKENS = 256  # llama.cpp's own rounding
BATCH_TOKENS_CPU = 64  # more is no faster on a CPU, and holds up others by the second
BATCH_TOKENS_GPU = 512
MEASURE_S_MAX = 0.4  # for each of prefill and decode
MEASURE_PROMPT_TOKENS_MAX = 512
OPTIONS = ("batch_tokens", "gpu_layers")


@dataclass(slots=True)
class _Running:
    start: engine_pb2.Start
    done: engine_pb2.Done  # filled in on the way
    unwanted: bool = False  # read by the threads that generate
    error: engine.EngineError | None = None
    choices: list[Pieces] = field(default_factory=list)


class LlamaCpp:
    def __init__(self, emit: engine.Emit) -> None:
        self._emit = emit
        self._load = engine_pb2.Load()
        self._metadata = Metadata({})
        self._chat: Chat | None = None
        self._server: Any = None
        self._embedder: Any = None
        self._context_tokens = 0
        self._running: dict[engine.Key, tuple[_Running, asyncio.Task[None]]] = {}
        self._threads = ThreadPoolExecutor(1, "generate")
        self._embedding_thread = ThreadPoolExecutor(1, "embed")

    async def load(self, load: engine_pb2.Load) -> engine_pb2.Loaded:
        if len(load.paths) != 1:
            raise engine.EngineError("bad_model_file", "llamacpp needs exactly one GGUF file")
        if unknown := set(load.options) - set(OPTIONS):
            raise engine.EngineError(
                "bad_option", f"llamacpp knows no option {', '.join(sorted(unknown))}; it knows {OPTIONS}"
            )
        self._load = load
        path = Path(load.paths[0])
        slots = load.slots or SLOTS_DEFAULT
        self._threads = ThreadPoolExecutor(slots, "generate")
        self._metadata = metadata = await asyncio.to_thread(read_metadata, path)
        trained = metadata.context_tokens or CONTEXT_TOKENS_DEFAULT
        context = min(load.context_tokens or CONTEXT_TOKENS_DEFAULT, trained)
        self._context_tokens = max(1, context // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS
        kinds = ["completion", "embedding"]
        if metadata.chat_template:
            self._chat = Chat(
                metadata.chat_template,
                bos=metadata.token("bos"),
                eos=metadata.token("eos"),
                control=metadata.control,
                now=datetime.now,
            )
            kinds.insert(0, "chat")
        self._server = await asyncio.to_thread(self._open, slots, embedding=False)
        prefill, decode = await asyncio.to_thread(self._measure)
        digest = await asyncio.to_thread(model_digest, [path])
        return engine_pb2.Loaded(
            numerics=f"llamacpp/{metadata.dtype}/{digest}",
            sampler="native",
            slots=slots,
            context_tokens=self._context_tokens,
            kinds=[kind for kind in kinds if not load.kinds or kind in load.kinds],
            memory_bytes=psutil.Process().memory_info().rss,
            prefill_tokens_per_s=prefill,
            decode_tokens_per_s=decode,
            features=[*self._chat.features, "json_schema"] if self._chat else [],
        )

    def start(self, start: engine_pb2.Start) -> None:
        running = _Running(start, engine_pb2.Done(attempt=start.attempt))
        task = asyncio.get_running_loop().create_task(self._work(running))
        self._running[engine.key_of(start.attempt)] = (running, task)

    def stop(self, attempt: work_pb2.Attempt) -> None:
        if (entry := self._running.get(engine.key_of(attempt))) is not None:
            entry[0].unwanted = True

    async def close(self) -> None:
        for running, _ in self._running.values():
            running.unwanted = True
        await asyncio.gather(*(task for _, task in self._running.values()))
        self._server = self._embedder = None
        gc.collect()

    async def _work(self, running: _Running) -> None:
        """The whole of an attempt, from its prompt to its one end."""
        start = running.start
        calls: list[asyncio.Future[None]] = []
        try:
            if start.work.HasField("embedding"):
                loop = asyncio.get_running_loop()
                calls = [loop.run_in_executor(self._embedding_thread, self._vectors, running)]
            else:
                prompt = self._render(start)
                grammar = await asyncio.to_thread(self._grammar, start, prompt)
                held = await asyncio.to_thread(self._held, start, prompt) if grammar else {}
                self._emit(engine.started(start.attempt, prompt))
                calls = self._generate(running, prompt, grammar, held)
        except engine.EngineError as error:
            running.error = error
        await self._finish(running, calls)

    # -- text ----------------------------------------------------------------------------------------------

    def _render(self, start: engine_pb2.Start) -> work_pb2.RenderedPrompt:
        if engine.knows_prompt(start):
            return start.continuation.prompt
        if start.work.HasField("completion"):
            work = start.work.completion
            return work_pb2.RenderedPrompt(text=work.prompt, ids=work.prompt_ids)
        if self._chat is None:
            raise engine.JobError("no_chat_template", "this model has no chat template: use completions")
        return self._chat.render(start.work.chat)

    def _grammar(self, start: engine_pb2.Start, prompt: work_pb2.RenderedPrompt) -> str:
        """Thread: what a chat's answer is held to; "" for nothing. Raises EngineError."""
        if not start.work.HasField("chat") or self._chat is None:
            return ""
        return self._chat.grammar(start.work.chat, prompt.format)

    def _held(self, start: engine_pb2.Start, prompt: work_pb2.RenderedPrompt) -> dict[int, Validated]:
        """Thread: the choices that go on inside of a structure. Raises EngineError."""
        said = {item.choice: item.text for item in start.continuation.delivered if not item.finish_reason}
        if self._chat is None or not any(said.values()):
            return {}
        grammar = self._chat.grammar(start.work.chat, prompt.format, spelled=True)
        return {choice: Validated(grammar, text) for choice, text in said.items() if text}

    def _prompt(
        self, prompt: work_pb2.RenderedPrompt, delivered: work_pb2.Delivered
    ) -> str | list[int | str]:
        """What /completions takes: text, or ids and text in turn."""
        if prompt.ids:
            mixed: list[int | str] = [*prompt.ids, *delivered.token_ids]
            return mixed if delivered.token_ids or not delivered.text else [*mixed, delivered.text]
        bos = self._metadata.token("bos")
        text = prompt.text
        if self._metadata.adds_bos and bos:
            text = text.removeprefix(bos)  # the template wrote it and llama.cpp would add it again
        text += delivered.text
        return text if text or self._metadata.bos_id is None else [self._metadata.bos_id]

    def _generate(
        self,
        running: _Running,
        prompt: work_pb2.RenderedPrompt,
        grammar: str,
        held: Mapping[int, Validated],
    ) -> "list[asyncio.Future[None]]":
        """A thread for each choice that is not at its end yet."""
        start = running.start
        sampling = engine.sampling_of(start.work)
        running.choices = open_choices(sampling, start.continuation, sampling.max_tokens)
        before = {delivered.choice: delivered for delivered in start.continuation.delivered}
        calls = []
        for pieces in running.choices:
            if pieces.exhausted:
                self._emit(engine.output(start.attempt, [pieces.end("length")]))
                continue
            text = self._prompt(prompt, before.get(pieces.choice, work_pb2.Delivered()))
            request = _request(sampling, text, pieces)
            request |= {"grammar": grammar} if grammar and pieces.choice not in held else {}
            if self._chat is not None and start.work.HasField("chat"):
                request["preserved_tokens"] = self._chat.marks
            loop = asyncio.get_running_loop()
            inside = held.get(pieces.choice)
            work = self._complete if inside is None else partial(self._go_on, inside)
            calls.append(loop.run_in_executor(self._threads, work, running, pieces, request))
        return calls

    async def _finish(self, running: _Running, calls: Sequence["asyncio.Future[None]"]) -> None:
        """Wait for the threads, then say the attempt's one end."""
        results = await asyncio.gather(*calls, return_exceptions=True)
        attempt = running.start.attempt
        for result in results:
            if isinstance(result, engine.EngineError):
                running.error = result
            elif isinstance(result, BaseException):
                running.error = engine.EngineError("internal", f"llama.cpp failed: {type(result).__name__}")
        del self._running[engine.key_of(attempt)]
        if running.unwanted:
            self._emit(engine.stopped(attempt))
        elif running.error is not None:
            self._emit(engine.failed(attempt, running.error))
        else:
            running.done.usage.output_tokens = sum(p.tokens - p.inherited for p in running.choices)
            self._emit(engine_pb2.EngineEvent(done=running.done))

    def _complete(self, running: _Running, pieces: Pieces, request: dict[str, Any]) -> None:
        """Thread: one choice from its first token to its end. llama.cpp stops when the callback says True."""
        if not running.unwanted and running.error is None:
            self._server.handle_completions(request, partial(self._hear, running, pieces))

    def _go_on(self, held: Validated, running: _Running, pieces: Pieces, request: dict[str, Any]) -> None:
        """Thread: one choice from inside of its structure to its end. Raises EngineError."""

        def stopped(chunk: dict[str, Any]) -> bool:
            if "error" in chunk:
                running.error = _error_of(chunk["error"])
            return running.unwanted or running.error is not None

        def emit(delta: work_pb2.Delta) -> None:
            self._emit(engine.output(running.start.attempt, [delta]))

        def ask(asked: dict[str, Any], hear: Callable[[dict[str, Any]], bool]) -> None:
            self._server.handle_completions(asked, lambda chunk: stopped(chunk) or hear(chunk))

        going = GoingOn(held, pieces, request, ask, emit)
        while not (running.unwanted or running.error or pieces.finish_reason):
            going.step()

    def _hear(self, running: _Running, pieces: Pieces, chunk: dict[str, Any]) -> bool:
        if running.unwanted or running.error is not None or pieces.finish_reason:
            return True
        if "error" in chunk:
            running.error = _error_of(chunk["error"])
            return True
        choice = chunk["choices"][0]
        if usage := chunk.get("usage"):
            running.done.usage.prompt_tokens = usage["prompt_tokens"]
        reason = choice["finish_reason"]
        counted = chunk.get("timings", {}).get("predicted_n", 0) + pieces.inherited
        new = 0 if reason else max(0, counted - pieces.tokens)  # the last chunk counts the end token
        deltas = [pieces.add(choice["text"], new, logprobs_of(choice))]
        if reason and not pieces.finish_reason:
            deltas.append(pieces.end(reason))
        for delta in filter(None, deltas):
            self._emit(engine.output(running.start.attempt, [delta]))
        return bool(pieces.finish_reason)

    # -- vectors -------------------------------------------------------------------------------------------

    def _vectors(self, running: _Running) -> None:
        """Thread: the vectors of all inputs, as long as they are wanted. Raises EngineError."""
        if self._embedder is None:
            # One that pools must take each input in a single batch, so text needs a server of its own.
            # Weights are mapped from the same file and shared.
            self._embedder = self._open(1, embedding=True)
        done = running.done
        for item in running.start.work.embedding.inputs:
            if running.unwanted:
                return
            answer = self._embedder.handle_embeddings({"input": [list(item.ids) or item.text]})
            if "error" in answer:
                raise _error_of(answer["error"])
            done.embeddings.append(work_pb2.Embedding(values=answer["data"][0]["embedding"]))
            done.embedding_tokens.append(answer["usage"]["prompt_tokens"])
        done.usage.prompt_tokens = sum(done.embedding_tokens)

    # -- the server ----------------------------------------------------------------------------------------

    def _open(self, slots: int, *, embedding: bool) -> Any:
        """Thread: a Server. Raises EngineError."""
        params = xllamacpp.CommonParams()
        listen_privately(params, sys.platform)
        params.model.path = self._load.paths[0]
        params.n_parallel = slots
        params.n_ctx = slots * self._context_tokens
        batch_tokens = self._context_tokens if embedding else self._batch_tokens()
        params.n_batch = params.n_ubatch = batch_tokens
        if embedding:
            params.embedding = True
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        if self._load.threads:
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._load.threads
        if layers := self._load.options.get("gpu_layers"):
            params.n_gpu_layers = int(layers)
        params.verbosity = -1  # no prompt may reach a log
        params.n_threads_http = 1
        params.ui = params.endpoint_slots = params.endpoint_props = params.warmup = False
        params.endpoint_metrics = params.offline = True
        params.cache_ram_mib = 0  # prompts of others are kept no longer than their slot
        try:
            return xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            raise engine.EngineError("load_failed", f"llama.cpp could not load the model: {error}") from error

    def _batch_tokens(self) -> int:
        if given := self._load.options.get("batch_tokens"):
            return int(given)
        kinds = {str(device.get("type", "")) for device in xllamacpp.get_device_info()}
        on_gpu = any("GPU" in kind for kind in kinds)
        return min(BATCH_TOKENS_GPU if on_gpu else BATCH_TOKENS_CPU, self._context_tokens)

    def _measure(self) -> tuple[float, float]:
        """Thread: prefill and decode tokens/s of one stream. The first call also warms up."""
        decode = self._time("The", 1 << 10, "predicted")
        # A prompt is never read more slowly than an answer is written, so this length keeps to the time.
        length = max(8, min(MEASURE_PROMPT_TOKENS_MAX, int(decode * MEASURE_S_MAX), self._context_tokens - 8))
        prefill = self._time([noise.hash64(0, 0, 0, i) % 1000 + 100 for i in range(length)], 1, "prompt")
        return prefill, decode

    def _time(self, prompt: str | list[int], tokens: int, what: str) -> float:
        until = time.monotonic() + MEASURE_S_MAX
        rates = [0.0]

        def hear(chunk: dict[str, Any]) -> bool:
            if (timings := chunk.get("timings")) and timings.get(f"{what}_ms", 0) > 0:
                rates.append(timings[f"{what}_per_second"])
            return time.monotonic() > until

        request = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        self._server.handle_completions(request | _STREAM | {"cache_prompt": False}, hear)
        return rates[-1]


_STREAM = {
    "stream": True,
    "timings_per_token": True,
    "return_progress": True,  # the callback is asked between pieces of a prompt too: long ones can be stopped
}


def listen_privately(params: Any, platform: str) -> None:
    """Make the Server's listener of use to nobody else on this machine."""
    if platform == "win32":
        params.hostnames = ["127.0.0.1"]
        params.port = 0  # the system's choice
        params.api_keys = [secrets.token_urlsafe(32)]
        return
    directory = os.environ.get(engine.RUNTIME_DIR) or tempfile.mkdtemp(prefix="potluck-")
    params.hostnames = [str(Path(directory) / f"{secrets.token_hex(4)}.sock")]


def _request(sampling: work_pb2.Sampling, prompt: str | list[int | str], pieces: Pieces) -> dict[str, Any]:
    """In llama.cpp's names, with everything off that the pool does not have."""
    seed = (
        noise.stream(sampling.seed, pieces.choice, pieces.tokens) & 0xFFFFFFFE
    )  # 32 bits; all ones is "random"
    request: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": pieces.tokens_max - pieces.tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": 0.0,
        "samplers": ["temperature", "top_k", "top_p"],
        "seed": seed,
    }
    if sampling.logprobs:
        request["logprobs"] = max(1, sampling.top_logprobs)
    return request | _STREAM


def _error_of(error: dict[str, Any]) -> engine.EngineError:
    if error.get("type") == "exceed_context_size_error":
        return engine.context_too_long(error["n_prompt_tokens"], error["n_ctx"])
    if large := re.search(
        r"input \((\d+) tokens\) is too large.*current batch size: (\d+)", error["message"]
    ):
        return engine.context_too_long(int(large[1]), int(large[2]))
    if 400 <= error.get("code", 500) < 500:
        return engine.JobError("invalid_request", f"llama.cpp refused the request: {error['message']}")
    return engine.EngineError("internal", f"llama.cpp failed: {error['message']}")
