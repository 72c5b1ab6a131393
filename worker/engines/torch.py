"""transformers' models in the pool's own batch, with the pool's own sampler.

A continuation is prompt ids + delivered ids: in fp32, and within one numerics class, it is the answer that
would have been. All computing happens in one thread; requests are read and rendered beside it.

Options: device (cuda, mps, cpu), dtype (float32, bfloat16, float16).
"""

import asyncio
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from potluck.v1 import engine_pb2, work_pb2
from worker.engines import engine, weights
from worker.engines.batch import Batch, Decoding, Embedding, Member, unit
from worker.engines.chat import Chat
from worker.engines.footprint import CONTEXT_TOKENS_MIN
from worker.engines.matcher import Constraint, Grammars
from worker.engines.measure import footprint_of, measure
from worker.engines.pieces import Pieces, merge, open_choices
from worker.engines.rows import Rows
from worker.engines.sampling import Sampler, logprobs

SLOTS_DEFAULT = 16
CONTEXT_TOKENS_DEFAULT = 4096
ROWS_A_SLOT = 2  # choices beyond that wait
OPTIONS = ("device", "dtype")


@dataclass(slots=True, eq=False)
class _Running:
    """One attempt; all but `unwanted` belongs to the computing thread once it is there."""

    start: engine_pb2.Start
    done: engine_pb2.Done
    unwanted: bool = False
    left: int = -1  # choices or inputs that are not at their end; -1 until it joins the batch
    prompt: work_pb2.RenderedPrompt | None = None
    choices: list[Pieces] = field(default_factory=list)
    deltas: list[work_pb2.Delta] = field(default_factory=list)  # of the step under way
    constraints: dict[int, Constraint] = field(default_factory=dict)  # by choice, where there is a structure


class Torch:
    def __init__(self, emit: engine.Emit) -> None:
        self._emit = emit
        self._loaded: weights.Loaded
        self._batch: Batch
        self._chat: Chat | None = None
        self._grammars: Grammars | None = None
        self._context_tokens = 0
        self._running: dict[
            engine.Key, _Running
        ] = {}  # by the loop's thread and, at the end, the computing one
        self._mail: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._compute, name="compute", daemon=True)
        self._preparing: set[asyncio.Task[None]] = set()

    async def load(self, load: engine_pb2.Load) -> engine_pb2.Loaded:
        if unknown := set(load.options) - set(OPTIONS):
            raise engine.EngineError(
                "bad_option",
                f"torch knows no option {', '.join(sorted(unknown))}; it knows {', '.join(OPTIONS)}",
            )
        if load.threads:
            torch.set_num_threads(load.threads)
        return await asyncio.to_thread(self._load, load)

    def _load(self, load: engine_pb2.Load) -> engine_pb2.Loaded:
        """Thread. Raises EngineError."""
        device = weights.this_device(load.options.get("device", ""), load.options.get("dtype", ""))
        paths = [Path(path) for path in load.paths]
        size = sum(path.stat().st_size for path in paths)
        self._progress(0, size)
        cap = load.memory_bytes_max
        device.hold(cap)
        self._loaded = loaded = weights.load_model(paths, Path(load.cache_dir or "."), device, cap)
        self._progress(size, size)
        kinds = ["completion", "embedding"]
        if loaded.text.chat_template:
            text = loaded.text
            self._chat = Chat(
                text.chat_template, bos=text.bos, eos=text.eos, control=text.control, now=datetime.now
            )
            self._grammars = Grammars.of(
                text.tokenizer, loaded.model.config.vocab_size, loaded.vocabulary.end_ids
            )
            kinds.insert(0, "chat")
        slots = load.slots or SLOTS_DEFAULT
        self._context_tokens = min(load.context_tokens or CONTEXT_TOKENS_DEFAULT, loaded.context_tokens)
        layers = loaded.model.config.num_hidden_layers
        self._batch = Batch(loaded.model, Rows(layers, self._context_tokens), slots * ROWS_A_SLOT)
        prefill, decode = measure(self._batch)
        self._keep_below(cap)
        self._thread.start()
        return engine_pb2.Loaded(
            numerics=f"torch/{device.dtype}/{loaded.digest}",
            sampler="pool",
            slots=slots,
            context_tokens=self._context_tokens,
            kinds=[kind for kind in kinds if not load.kinds or kind in load.kinds],
            memory_bytes=device.used_bytes(),
            prefill_tokens_per_s=prefill,
            decode_tokens_per_s=decode,
            features=self._features(),
        )

    def _keep_below(self, cap_bytes: int) -> None:
        """What follows stays below the owner's cap. Raises EngineError if nothing could be served there."""
        batch = self._batch
        batch.footprint = footprint = footprint_of(batch, cap_bytes, self._loaded.device.used_bytes())
        if not cap_bytes:
            return
        if footprint.missing_bytes:
            needed = (cap_bytes + footprint.missing_bytes) / 1e9
            raise weights.no_room(f"needs {needed:.2f} GB to answer {CONTEXT_TOKENS_MIN} tokens", cap_bytes)
        self._context_tokens = min(self._context_tokens, footprint.tokens_max(1))
        batch.rows.tokens_max = self._context_tokens
        batch.lora.bytes_max = max(1, footprint.adapters_bytes)

    def _features(self) -> list[str]:
        found = list(self._chat.features) if self._chat is not None else []
        return [*found, *(["json_schema"] if self._grammars is not None else []), "lora"]

    def _progress(self, done: int, total: int) -> None:
        progress = engine_pb2.LoadProgress(bytes_done=done, bytes_total=total)
        self._emit(engine_pb2.EngineEvent(load_progress=progress))

    def start(self, start: engine_pb2.Start) -> None:
        running = _Running(start, engine_pb2.Done(attempt=start.attempt))
        self._running[engine.key_of(start.attempt)] = running
        task = asyncio.get_running_loop().create_task(self._prepare(running))
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    def stop(self, attempt: work_pb2.Attempt) -> None:
        if (running := self._running.get(engine.key_of(attempt))) is not None and not running.unwanted:
            running.unwanted = True
            self._mail.put(lambda: self._end(running, engine.stopped(attempt)))

    async def close(self) -> None:
        self._mail.put(None)
        await asyncio.to_thread(self._thread.join)

    # -- beside the computing ------------------------------------------------------------------------------

    async def _prepare(self, running: _Running) -> None:
        """Render and tokenise in a thread, then hand over."""
        try:
            members = await asyncio.to_thread(self._members, running)
        except engine.EngineError as error:
            event = engine.failed(running.start.attempt, error)
            self._mail.put(lambda: self._end(running, event))
        else:
            self._mail.put(lambda: self._join(running, members))

    def _members(self, running: _Running) -> list[Member]:
        """Thread: what is to be computed for an attempt. Raises EngineError."""
        start = running.start
        members = (self._inputs if start.work.HasField("embedding") else self._choices)(running)
        if start.HasField("adapter"):
            adapter = self._batch.lora.get(start.adapter)
            for member in members:
                member.adapter = adapter
        return members

    def _inputs(self, running: _Running) -> list[Member]:
        """Thread: what is to be embedded. Raises EngineError."""
        members: list[Member] = []
        for item in running.start.work.embedding.inputs:
            ids = list(item.ids) or self._tokens(item.text, special=True)
            if not ids:
                raise engine.JobError("invalid_request", "an input to be embedded is empty")
            self._check_ids(ids)
            if len(ids) > self._context_tokens:
                raise self._too_long(len(ids))
            running.done.embeddings.add()
            running.done.embedding_tokens.append(len(ids))
            place = len(members)

            def heard(_: Embedding, vector: Any, place: int = place) -> None:
                running.done.embeddings[place].values.extend(unit(vector))
                running.left -= 1

            members.append(Embedding(running, ids, heard))
        running.done.usage.prompt_tokens = sum(running.done.embedding_tokens)
        return members

    def _choices(self, running: _Running) -> list[Member]:
        """Thread: the choices that are to be generated, from where they stand. Raises EngineError."""
        start = running.start
        prompt = self._render(start)
        if len(prompt.ids) >= self._context_tokens:
            raise self._too_long(len(prompt.ids))
        sampling = engine.sampling_of(start.work)
        room = self._context_tokens - len(prompt.ids)
        running.done.usage.prompt_tokens = len(prompt.ids)
        running.choices = open_choices(sampling, start.continuation, min(sampling.max_tokens, room))
        running.prompt = prompt
        before = {delivered.choice: delivered for delivered in start.continuation.delivered}
        grammar = self._grammar(start.work, prompt)
        members: list[Member] = []
        for pieces in running.choices:
            if pieces.exhausted:
                running.deltas.append(pieces.end("length"))
                continue
            delivered = before.get(pieces.choice, work_pb2.Delivered())
            # Text without ids is from an engine that has none: it is read anew, and the counts stay its own.
            said = list(delivered.token_ids) or self._tokens(delivered.text)
            ids = [*prompt.ids, *said]
            if grammar and self._grammars is not None:
                constraint = running.constraints[pieces.choice] = self._grammars.constraint(grammar, said)
                if constraint.complete:
                    running.deltas.append(pieces.end("stop"))
                    continue
            if len(ids) >= self._context_tokens:
                running.deltas.append(pieces.end("length"))
                continue
            self._check_ids(ids)
            sampler = Sampler.of(sampling, pieces.choice)
            members.append(Decoding(running, ids, pieces, sampler, len(prompt.ids), self._hear))
        return members

    def _too_long(self, tokens: int) -> engine.EngineError:
        """With a cap it is this worker that is too small for the prompt, and nobody's fault."""
        if not self._batch.footprint.cap_bytes:
            return engine.context_too_long(tokens, self._context_tokens)
        return engine.EngineError(
            "no_room",
            f"the prompt has {tokens} tokens, and the memory that this worker may use holds"
            f" {self._context_tokens}",
            fault=work_pb2.FAULT_NONE,
        )

    def _grammar(self, work: work_pb2.Work, prompt: work_pb2.RenderedPrompt) -> str:
        """Thread: what a chat's answer is held to; "" for nothing. Raises EngineError."""
        if not work.HasField("chat") or self._chat is None:
            return ""
        grammar = self._chat.grammar(work.chat, prompt.format)
        if grammar and self._grammars is None:
            raise engine.JobError(
                "structure_unsupported", "this model's vocabulary cannot be held to a structure"
            )
        return grammar

    def _render(self, start: engine_pb2.Start) -> work_pb2.RenderedPrompt:
        """The prompt with its ids. Raises EngineError."""
        work, prompt = start.work, work_pb2.RenderedPrompt()
        is_chat = work.HasField("chat")
        if engine.knows_prompt(start):
            prompt.CopyFrom(start.continuation.prompt)
        elif not is_chat:
            prompt.text = work.completion.prompt
            prompt.ids.extend(work.completion.prompt_ids)
        elif self._chat is None:
            raise engine.JobError("no_chat_template", "this model has no chat template: use completions")
        else:
            prompt = self._chat.render(work.chat)
        if not prompt.ids:  # a template writes its special tokens itself
            prompt.ids.extend(self._tokens(prompt.text, special=not is_chat))
        if not prompt.ids:
            raise engine.JobError(
                "invalid_request", "the prompt is empty, and this model cannot begin with nothing"
            )
        self._check_ids(prompt.ids)
        return prompt

    def _check_ids(self, ids: Sequence[int]) -> None:
        size = self._loaded.model.config.vocab_size
        if max(ids) >= size:
            raise engine.JobError("invalid_request", f"token id {max(ids)}: this model has {size}")

    def _tokens(self, text: str, *, special: bool = False) -> list[int]:
        ids = list(self._loaded.text.tokenizer.encode(text, add_special_tokens=False).ids)
        return [*self._loaded.text.begin_ids, *ids] if special else ids

    # -- the computing thread ------------------------------------------------------------------------------

    def _compute(self) -> None:
        """Until the mail says None: mail, then a step, then what the step said."""
        while True:
            try:
                while self._batch.idle or not self._mail.empty():
                    if (act := self._mail.get()) is None:
                        return
                    act()
                self._batch.read()
                self._say()
                self._batch.decode()
                self._say()
            except Exception as error:  # the batch begins anew; attempts fail, the engine lives on
                for running in self._batch.clear():
                    self._end(running, engine.failed(running.start.attempt, _error_of(error)))

    def _join(self, running: _Running, members: Sequence[Member]) -> None:
        if self._running.get(engine.key_of(running.start.attempt)) is running:
            running.left = len(members)
            if running.prompt is not None:
                self._emit(engine.started(running.start.attempt, running.prompt))
            self._batch.add(members)
            self._say_one(running)

    def _end(self, running: _Running, event: engine_pb2.EngineEvent) -> None:
        """The attempt's one end."""
        if self._running.pop(engine.key_of(running.start.attempt), None) is not None:
            self._batch.drop(running)
            self._emit(event)

    def _hear(self, member: Decoding, logits: Any) -> bool:
        """One sequence's next token. False: it was the last."""
        pieces, sampling = member.pieces, engine.sampling_of(member.owner.start.work)
        constraint = member.owner.constraints.get(pieces.choice)
        try:
            allowed = logits if constraint is None else constraint.allowed(logits)
        except engine.JobError as error:  # of this attempt; the others in the batch go on
            event = engine.failed(member.owner.start.attempt, error)
            self._mail.put(lambda: self._end(member.owner, event))
            return False
        token_id = member.sampler.pick(allowed, pieces.tokens)
        if token_id in self._loaded.vocabulary.end_ids:
            delta: work_pb2.Delta | None = pieces.end("stop")
        else:
            data = self._loaded.vocabulary.bytes_of(token_id, pieces.tokens)
            scored = self._scored(logits, token_id, data, sampling) if sampling.logprobs else None
            delta = pieces.push(token_id, data, scored)
            member.ids.append(token_id)
            if constraint is not None:
                constraint.push(token_id)
            if not pieces.finish_reason and constraint is not None and constraint.complete:
                member.owner.deltas.extend([delta] if delta else [])
                delta = pieces.end("stop")
            elif not pieces.finish_reason and len(member.ids) >= self._context_tokens:
                member.owner.deltas.extend([delta] if delta else [])
                delta = pieces.end("length")
        if delta is not None:
            member.owner.deltas.append(delta)
        if pieces.finish_reason:
            member.owner.left -= 1
        return not pieces.finish_reason

    def _scored(
        self, logits: Any, token_id: int, data: bytes, sampling: work_pb2.Sampling
    ) -> work_pb2.TokenLogprob:
        value, top = logprobs(logits, token_id, sampling.top_logprobs)
        return work_pb2.TokenLogprob(
            token=data.decode(errors="replace"),
            logprob=value,
            bytes=data,
            top=[self._alternative(other, score) for other, score in top],
        )

    def _alternative(self, token_id: int, score: float) -> work_pb2.TokenLogprob:
        data = self._loaded.vocabulary.bytes_of(token_id, 1)
        return work_pb2.TokenLogprob(token=data.decode(errors="replace"), logprob=score, bytes=data)

    def _say(self) -> None:
        """What one step brought, a message an attempt."""
        for running in list(self._running.values()):
            if running.deltas or running.left == 0:
                self._say_one(running)

    def _say_one(self, running: _Running) -> None:
        if running.deltas:
            self._emit(engine.output(running.start.attempt, merge(running.deltas)))
            running.deltas = []
        if running.left == 0:
            running.done.usage.output_tokens = sum(p.tokens - p.inherited for p in running.choices)
            self._end(running, engine_pb2.EngineEvent(done=running.done))


def _error_of(error: Exception) -> engine.EngineError:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return engine.EngineError(
            "out_of_memory", "the model ran out of memory: give it fewer slots or less context"
        )
    for place in traceback.extract_tb(error.__traceback__)[-3:]:
        sys.stderr.write(f"engine: {type(error).__name__} at {place.filename}:{place.lineno}\n")
    return engine.EngineError("internal", f"computing failed with {type(error).__name__}; the log says where")
