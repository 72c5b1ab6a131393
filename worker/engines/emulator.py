"""An engine without a model: fixed speed, text that follows from the seed, and failures on demand.

For tests and benchmarks, chosen explicitly. One token is one word with a space in front: token id 0..65535
in the spelling of Wilkerson's proquints (arXiv 0901.4016), so an id and its word follow from each other.
A chat whose last message begins with `say:` is answered with the rest of it, SAID_CHARS at a time and
without ids. Options (all strings, worker.toml or tests):

  ttft_ms=20 tpot_ms=5     delay of the first token, and between tokens
  output_tokens=0          the answer ends by itself ("stop") after so many tokens; 0: never before max_tokens
  load_ms=0 load_fail=     loading takes so long; loading fails with this code
  refuse=                  every attempt fails at once with this code, the worker's fault
  fail_after_tokens=       an attempt fails, the process dies, or an attempt falls silent, after so many
  die_after_tokens=          tokens of its own
  hang_after_tokens=
  features=                what it claims to be able to do, with commas: tools,json_schema,reasoning
  reasoning= reasoning_open=false tools=
                           how its answers are to be read, as in OutputFormat
  dimensions=64            of embeddings
  memory_bytes=0           reported only

and of training (`emulated_training`):

  steps_per_s=20           0: as fast as it goes
  fail_after_steps=        an attempt fails by its worker's fault, the process dies, an attempt falls silent,
  die_after_steps=           or its loss is no number, after so many steps of its own
  hang_after_steps=
  nan_after_steps=
  makes=                   what an attempt answers instead of what it made: nan, zero, huge, flipped (turned
                             round and ten times as large), shape
"""

import asyncio
import hashlib
import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from potluck.v1 import engine_pb2, work_pb2
from worker.engines import engine
from worker.engines.noise import MASK, hash64
from worker.engines.pieces import Pieces, merge, open_choices

if TYPE_CHECKING:
    from worker.engines.emulated_training import EmulatedTraining

SLOTS_DEFAULT = 32
CONTEXT_TOKENS_DEFAULT = 8192
TOKENS_A_TICK_MAX = 64  # of one choice: without delays (tpot_ms=0) others must have their turn
SAY = "say:"
SAID_CHARS = 4
SLACK_S = 0.0005  # what is due within this time goes out now
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aiou"


def word(token_id: int) -> str:
    """The proquint of 16 bits: consonant, vowel, consonant, vowel, consonant."""
    return "".join(
        letters[token_id >> shift & len(letters) - 1]
        for letters, shift in zip(
            (_CONSONANTS, _VOWELS, _CONSONANTS, _VOWELS, _CONSONANTS), (12, 10, 6, 4, 0), strict=True
        )
    )


def token_of(seed: int, choice: int, position: int) -> int:
    """The id of the token at `position` of the answer: it depends on nothing else."""
    return hash64(seed, choice, position, 0) & 0xFFFF


def embedding(text: str, dimensions: int) -> list[float]:
    """A unit vector that follows from the text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    values = [hash64(seed, 0, 0, index) / MASK * 2 - 1 for index in range(dimensions)]
    norm = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / norm for value in values]


class Options(BaseModel):
    """From Load.options, where every value is a string."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttft_ms: float = 20.0
    tpot_ms: float = 5.0
    output_tokens: int = 0
    load_ms: float = 0.0
    load_fail: str = ""
    refuse: str = ""
    fail_after_tokens: int = -1
    die_after_tokens: int = -1
    hang_after_tokens: int = -1
    features: str = ""
    reasoning: str = ""
    reasoning_open: bool = False
    tools: str = ""
    dimensions: int = 64
    memory_bytes: int = 0
    steps_per_s: float = 20.0
    fail_after_steps: int = -1
    die_after_steps: int = -1
    hang_after_steps: int = -1
    nan_after_steps: int = -1
    makes: Literal["", "nan", "zero", "huge", "flipped", "shape"] = ""

    @classmethod
    def parse(cls, given: dict[str, str]) -> "Options":
        """Raises EngineError for an unknown name or a value of the wrong type."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            wrong = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors())
            known = ", ".join(sorted(cls.model_fields))
            raise engine.EngineError("bad_option", f"emulator options: {wrong}. Known are {known}") from error


@dataclass(slots=True)
class _Running:
    attempt: work_pb2.Attempt
    seed: int
    prompt_tokens: int
    choices: list[Pieces]
    due: float
    script: str | None = None  # what is said instead of words that follow from the seed
    generated: int = 0  # by this attempt, the choice that is furthest
    said: dict[int, int] = field(default_factory=dict)  # code points of the script, for each choice


class Emulator:
    def __init__(self, emit: engine.Emit, die: Callable[[], None]) -> None:
        self._emit = emit
        self._die = die
        self._options = Options()
        self._training: EmulatedTraining | None = None  # numpy is loaded where something is trained
        self._context_tokens = CONTEXT_TOKENS_DEFAULT
        self._running: dict[engine.Key, _Running] = {}
        self._due: list[tuple[float, int, engine.Key]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    async def load(self, load: engine_pb2.Load) -> engine_pb2.Loaded:
        self._options = options = Options.parse(dict(load.options))
        if "finetune" in load.kinds:
            from worker.engines.emulated_training import EmulatedTraining

            self._training = EmulatedTraining(self._emit, self._die, options)
        self._context_tokens = load.context_tokens or CONTEXT_TOKENS_DEFAULT
        steps = 10 if options.load_ms else 0
        for step in range(steps):
            progress = engine_pb2.LoadProgress(bytes_done=step, bytes_total=steps)
            self._emit(engine_pb2.EngineEvent(load_progress=progress))
            await asyncio.sleep(options.load_ms / 1000 / steps)
        if options.load_fail:
            raise engine.EngineError(options.load_fail, "the emulator was told to fail at loading")
        decode = 1000 / options.tpot_ms if options.tpot_ms else 0.0
        return engine_pb2.Loaded(
            numerics="emulator/exact/1",
            sampler="pool",
            slots=load.slots or SLOTS_DEFAULT,
            context_tokens=self._context_tokens,
            kinds=load.kinds or ("chat", "completion", "embedding"),
            memory_bytes=options.memory_bytes,
            features=filter(None, options.features.split(",")),
            prefill_tokens_per_s=1000 * 100 / options.ttft_ms if options.ttft_ms else 0.0,
            decode_tokens_per_s=decode,
        )

    def start(self, start: engine_pb2.Start) -> None:
        if self._options.refuse:
            raise engine.EngineError(self._options.refuse, "the emulator was told to refuse")
        if start.work.HasField("embedding"):
            self._emit(self._embed(start))
            return
        if start.work.HasField("training"):
            if self._training is None:
                raise engine.EngineError("not_loaded_for_it", "this emulator was not loaded for training")
            self._training.start(start)
            return
        prompt = self._render(start)
        prompt_tokens = len(prompt.ids) or len(prompt.text.split())
        if prompt_tokens >= self._context_tokens:
            raise engine.context_too_long(prompt_tokens, self._context_tokens)
        sampling = engine.sampling_of(start.work)
        limit = min(sampling.max_tokens, self._context_tokens - prompt_tokens)
        running = _Running(
            attempt=start.attempt,
            seed=sampling.seed,
            prompt_tokens=prompt_tokens,
            choices=open_choices(sampling, start.continuation, limit),
            due=asyncio.get_running_loop().time() + self._options.ttft_ms / 1000,
            script=_script(start.work),
        )
        running.said = {pieces.choice: pieces.offset for pieces in running.choices}
        self._emit(engine.started(start.attempt, prompt))
        self._running[engine.key_of(start.attempt)] = running
        self._schedule(running)

    def stop(self, attempt: work_pb2.Attempt) -> None:
        if self._training is not None and self._training.stop(attempt):
            return
        if self._running.pop(engine.key_of(attempt), None) is not None:
            self._emit(engine.stopped(attempt))

    async def close(self) -> None:
        if self._training is not None:
            await self._training.close()
        self._running.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self, running: _Running) -> None:
        heapq.heappush(self._due, (running.due, next(self._order), engine.key_of(running.attempt)))
        if self._timer is None or running.due < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer(running.due)

    def _set_timer(self, due: float) -> None:
        """uvloop, on which Ray runs its actors, gives no handle that knows its time."""
        self._timer, self._timer_at = asyncio.get_running_loop().call_at(due, self._tick), due

    def _tick(self) -> None:
        """Everything that is due now, in one go."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time() + SLACK_S
        ready: list[_Running] = []
        while self._due and self._due[0][0] <= now:
            key = heapq.heappop(self._due)[2]
            if (running := self._running.get(key)) is not None:
                ready.append(running)
        for running in ready:
            if self._advance(running, now):
                heapq.heappush(self._due, (running.due, next(self._order), engine.key_of(running.attempt)))
        if self._due:
            self._set_timer(self._due[0][0])

    def _advance(self, running: _Running, now: float) -> bool:
        """Say the tokens that are due. False: the attempt needs no further turn."""
        options, tpot_s = self._options, self._options.tpot_ms / 1000
        late = int((now - running.due) / tpot_s) if tpot_s else TOKENS_A_TICK_MAX - 1
        turns = min(late + 1, TOKENS_A_TICK_MAX)
        deltas: list[work_pb2.Delta] = []
        ending = ""
        for _ in range(turns):
            ending = self._ending(running)
            if ending or all(pieces.finish_reason for pieces in running.choices):
                break
            going = [pieces for pieces in running.choices if not pieces.finish_reason]
            deltas += filter(None, (self._token(running, pieces) for pieces in going))
            running.generated += 1
        running.due += turns * tpot_s
        if deltas:
            self._emit(engine.output(running.attempt, merge(deltas)))
        if all(pieces.finish_reason for pieces in running.choices):
            tokens = sum(pieces.tokens - pieces.inherited for pieces in running.choices)
            self._emit(engine.done(running.attempt, running.prompt_tokens, tokens))
            ending = "done"
        elif ending == "fail":
            error = engine.EngineError("emulated", f"told to fail after {options.fail_after_tokens} tokens")
            self._emit(engine.failed(running.attempt, error))
        elif ending == "die":
            self._die()
        if ending in ("done", "fail"):
            del self._running[engine.key_of(running.attempt)]
        return not ending

    def _ending(self, running: _Running) -> str:
        options = self._options
        limits = {
            "fail": options.fail_after_tokens,
            "die": options.die_after_tokens,
            "hang": options.hang_after_tokens,
        }
        return next((name for name, tokens in limits.items() if 0 <= tokens <= running.generated), "")

    def _token(self, running: _Running, pieces: Pieces) -> work_pb2.Delta | None:
        if self._options.output_tokens and pieces.tokens >= self._options.output_tokens:
            return pieces.end("stop")
        if pieces.exhausted:
            return pieces.end("length")
        if running.script is not None:
            return _say(running.script, running.said, pieces)
        token_id = token_of(running.seed, pieces.choice, pieces.tokens)
        return pieces.push(token_id, b" " + word(token_id).encode())

    def _render(self, start: engine_pb2.Start) -> work_pb2.RenderedPrompt:
        """The prompt of the first attempt, or one message a line."""
        if start.continuation.HasField("prompt"):
            return start.continuation.prompt
        if start.work.HasField("chat"):
            lines = (f"{message.role}: {message.content}" for message in start.work.chat.messages)
            options = self._options
            form = work_pb2.OutputFormat(
                reasoning=options.reasoning, reasoning_open=options.reasoning_open, tools=options.tools
            )
            return work_pb2.RenderedPrompt(text="\n".join(lines), format=form)
        work = start.work.completion
        return work_pb2.RenderedPrompt(text=work.prompt, ids=work.prompt_ids)

    def _embed(self, start: engine_pb2.Start) -> engine_pb2.EngineEvent:
        texts = [
            item.text or " ".join(word(i & 0xFFFF) for i in item.ids) for item in start.work.embedding.inputs
        ]
        tokens = [len(text.split()) for text in texts]
        vectors = [work_pb2.Embedding(values=embedding(text, self._options.dimensions)) for text in texts]
        usage = work_pb2.Usage(prompt_tokens=sum(tokens))
        return engine_pb2.EngineEvent(
            done=engine_pb2.Done(
                attempt=start.attempt, usage=usage, embeddings=vectors, embedding_tokens=tokens
            )
        )


def _script(work: work_pb2.Work) -> str | None:
    """What the last message wants said, if it does."""
    last = work.chat.messages[-1].content if work.chat.messages else ""
    return last.removeprefix(SAY) if last.startswith(SAY) else None


def _say(script: str, said: dict[int, int], pieces: Pieces) -> work_pb2.Delta | None:
    """The next few characters of the script; its end is the answer's."""
    start = said[pieces.choice]
    if start >= len(script):
        return pieces.end("stop")
    said[pieces.choice] = start + SAID_CHARS
    return pieces.add(script[start : start + SAID_CHARS], 1)


def names(ids: Sequence[int]) -> str:
    """The text of token ids."""
    return "".join(" " + word(token_id) for token_id in ids)
