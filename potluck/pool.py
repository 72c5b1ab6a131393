"""The Python SDK: one pool as one member sees it.

    from potluck import Pool

    with Pool() as pool:                      # the address and key of `potluck login`
        print(pool.chat("Why is the sky blue?").text)
        with pool.stream("Tell me more.") as pieces:
            for piece in pieces:
                print(piece.text, end="")
        print(pool.balance().available)       # integer microcredits

Every method raises a class of `potluck.errors` and nothing else.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

from potluck.answers import Answer, Choice, Embeddings, Piece, ToolCall, Usage
from potluck.batching import Batching
from potluck.client import resolve
from potluck.errors import (
    InvalidRequest,
    JobCancelled,
    JobFailed,
    JobNotFinished,
    NotFound,
    Unavailable,
    Unreachable,
)
from potluck.files import FileCalls
from potluck.finetuning import FineTuneCalls
from potluck.ledger import LedgerCalls
from potluck.limiting import Limiting
from potluck.machines import Machines
from potluck.membership import IDEMPOTENCY_BYTES, Membership
from potluck.results import (
    Balance,
    Job,
    JobPage,
    JoinToken,
    Me,
    Member,
    Model,
    NewMember,
    Quote,
    Status,
    plain,
    read,
    read_all,
    read_listed,
)
from potluck.statement import StatementRoutes
from potluck.streams import AnswerStream
from potluck.transport import Transport, path_of
from potluck.tuned import TunedCalls

TIMEOUT_S: Final = 600.0
RETRIES_MAX: Final = 2
POLL_S_FIRST: Final = 0.1
POLL_S_MAX: Final = 2.0
AWAY_S_MAX: Final = 60.0  # a coordinator may be away so long while a job is followed

Message = Mapping[str, Any]
Messages = str | Sequence[Message]
Kind = Literal["chat", "completion", "embedding"]


class Pool(Limiting, LedgerCalls, StatementRoutes, Membership, Batching, Machines):
    """A connection to a pool; close it, or use it as a context manager.

    What is not given comes from the environment (`POTLUCK_URL`, `POTLUCK_KEY`, `POTLUCK_PROFILE`,
    `POTLUCK_MODEL`), then from `client.toml`. `timeout_s` bounds each wait for a byte, not a whole answer.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        profile: str | None = None,
        *,
        model: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries_max: int = RETRIES_MAX,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        found = resolve({"url": url, "key": key, "profile": profile, "model": model})
        self.url, self._model, self._sleep = found.address, found.model.value, sleep
        self._transport = Transport(
            self.url, found.secret, timeout_s=timeout_s, retries_max=retries_max, sleep=sleep
        )
        self.files = FileCalls(self._transport, sleep)
        self.finetunes = FineTuneCalls(self._transport, sleep)
        self.tuned = TunedCalls(self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    # ---- asking

    def chat(self, messages: Messages, *, model: str | None = None, **parameters: Any) -> Answer:
        """A whole answer. A string is one user message; parameters are the OpenAI API's
        (`max_tokens`, `temperature`, `seed`, `stop`, `n`, `tools`, `response_format`, ...), and
        `potluck={"workers": "mine"}`. What a model thought is in `reasoning`, what it calls in `tool_calls`.
        """
        body = self._chat_body(messages, model, parameters)
        return _answer(self._transport.post("/v1/chat/completions", body), _chat_choice)

    def stream(self, messages: Messages, *, model: str | None = None, **parameters: Any) -> AnswerStream:
        """The answer piece by piece, as a context manager; leaving it early cancels the job, and what was
        produced is paid.
        """
        body = self._chat_body(messages, model, parameters)
        return AnswerStream(self._transport, "/v1/chat/completions", body)

    def complete(self, prompt: str, *, model: str | None = None, **parameters: Any) -> Answer:
        """A continuation of the prompt, without a chat template."""
        body = {"model": self.model(model, "completion"), "prompt": prompt, **parameters}
        return _answer(
            self._transport.post("/v1/completions", body), lambda choice: {"text": choice.get("text") or ""}
        )

    def embed(self, texts: str | Sequence[str], *, model: str | None = None, **parameters: Any) -> Embeddings:
        """One vector for each text."""
        inputs = [texts] if isinstance(texts, str) else list(texts)
        body = {"model": self.model(model, "embedding"), "input": inputs, **parameters}
        return embeddings_from(self._transport.post("/v1/embeddings", body))

    def quote(self, kind: Kind, request: Mapping[str, Any]) -> Quote:
        """The most that this request can cost. `request` is the body that the OpenAI route would get."""
        return read(Quote, self._transport.post("/pool/v1/quote", {"kind": kind, "request": dict(request)}))

    # ---- stored jobs

    def submit(self, kind: Kind, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> str:
        """Leave a job with the pool and get its id; the result waits there. The same key never pays twice."""
        idempotency_key = idempotency_key or secrets.token_hex(IDEMPOTENCY_BYTES)
        body = {"kind": kind, "request": dict(request)}
        answer = self._transport.post("/pool/v1/jobs", body, idempotency_key=idempotency_key)
        return read(Job, {"kind": kind, "state": "queued", "model": "", "member": "", **answer}).id

    def job(self, job_id: str) -> Job:
        return read(Job, self._transport.get(path_of("/pool/v1/jobs", job_id)))

    def jobs(
        self,
        *,
        limit: int = 20,
        before: str | None = None,
        state: str | None = None,
        kind: str | None = None,
    ) -> JobPage:
        """The newest jobs first; `before` is the id of the last one on the page before."""
        given = {"limit": limit, "before": before, "state": state, "kind": kind}
        params = {name: value for name, value in given.items() if value is not None}
        return read(JobPage, self._transport.get("/pool/v1/jobs", params))

    def cancel(self, job_id: str) -> Job:
        """Stop the job; what it produced so far is paid. One that has ended stays as it is."""
        self._transport.post(path_of("/pool/v1/jobs", job_id, "cancel"), {})
        return self.job(job_id)

    def follow(self, job_id: str, *, timeout_s: float | None = None) -> Iterator[Job]:
        """The job now and whenever its state changes, up to its end. Raises JobNotFinished in time."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last, wait_s = None, POLL_S_FIRST
        gone_since: float | None = None
        while True:
            try:
                job, gone_since = self.job(job_id), None
            except (Unreachable, Unavailable):  # a coordinator that restarts: the job outlives it
                gone_since = gone_since or time.monotonic()
                if time.monotonic() - gone_since > AWAY_S_MAX:
                    raise
                self._sleep(POLL_S_MAX)
                continue
            if job != last:
                last, wait_s = job, POLL_S_FIRST
                yield job
            if job.ended:
                return
            if deadline is not None and time.monotonic() + wait_s > deadline:
                raise JobNotFinished(
                    f"Job {job_id} is still {job.state} after {timeout_s:g} s. Follow it with `potluck"
                    f" jobs watch {job_id}`, or stop it with `potluck jobs cancel {job_id}`.",
                    extra={"job": job_id, "state": job.state},
                )
            self._sleep(wait_s)
            wait_s = min(POLL_S_MAX, wait_s * 2)

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """The job once it succeeded. Raises JobFailed, JobCancelled, or JobNotFinished in time."""
        *_, job = self.follow(job_id, timeout_s=timeout_s)
        return succeeded(job)

    def result(self, job_id: str) -> Mapping[str, Any]:
        """What the OpenAI route would have answered. Raises JobNotFinished, JobFailed, JobCancelled."""
        try:
            answer = self._transport.get(path_of("/pool/v1/jobs", job_id, "result"))
        except (InvalidRequest, NotFound) as error:
            job = self.job(job_id)
            if not job.ended:
                message = f"Job {job_id} is still {job.state}. Follow it with `potluck jobs watch {job_id}`."
                raise JobNotFinished(message, extra={"job": job_id, "state": job.state}) from None
            succeeded(job)
            raise error from None
        if not isinstance(answer, dict):
            raise InvalidRequest(f"Job {job_id} has no result.")
        return answer

    # ---- looking

    def me(self) -> Me:
        return read(Me, self._transport.get("/pool/v1/me"))

    def balance(self) -> Balance:
        return read(Balance, self._transport.get("/pool/v1/balance"))

    def models(self) -> list[Model]:
        return read_all(Model, self._transport.get("/pool/v1/models"))

    def status(self) -> Status:
        return read(Status, self._transport.get("/pool/v1/status"))

    def model(self, wanted: str | None = None, kind: str = "chat") -> str:
        """The model to ask: the one given here, else this connection's, else the pool's best guess."""
        if wanted or self._model:
            return wanted or self._model or ""
        able = [model for model in self.models() if kind in model.kinds and model.base is None]
        if not able:
            raise NotFound(f"This pool has no model for {kind} yet. `potluck models` shows what there is.")
        return soonest(able).name

    # ---- members, workers to come

    def members(self) -> list[Member]:
        """For admins."""
        return read_listed(Member, self._transport.get("/pool/v1/members"))

    def add_member(self, name: str, *, role: str | None = None, credit_line: int | None = None) -> NewMember:
        """For admins. `credit_line` in microcredits; the pool's default where it is left out."""
        given = {"name": name, "role": role, "credit_line": credit_line}
        body = {key: value for key, value in given.items() if value is not None}
        return read(NewMember, self._transport.post("/pool/v1/members", body))

    def join_token(self, *, uses: int | None = None, expires_s: int | None = None) -> JoinToken:
        """Lets a worker in that will belong to this member."""
        body = {
            name: value for name, value in (("uses", uses), ("expires_s", expires_s)) if value is not None
        }
        return read(JoinToken, self._transport.post("/pool/v1/join-tokens", body))

    def _chat_body(
        self, messages: Messages, model: str | None, parameters: Mapping[str, Any]
    ) -> dict[str, Any]:
        listed = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return {"model": self.model(model, "chat"), "messages": listed, **parameters}


def soonest(models: Sequence[Model]) -> Model:
    """One that is loaded answers at once; one that some worker has, soon; otherwise the catalogue's first."""
    return min(models, key=lambda model: (model.state != "ready", not model.workers))


def succeeded(job: Job) -> Job:
    """The ended job itself if it went well. Raises JobFailed or JobCancelled with the reason."""
    why = job.why or next((attempt.why for attempt in reversed(job.attempts) if attempt.why), None)
    extra = {"job": job.id, "state": job.state}
    if job.state == "cancelled":
        raise JobCancelled(f"Job {job.id} was cancelled.", extra=extra)
    if job.state != "succeeded":
        raise JobFailed(f"Job {job.id} {job.state}: {why or 'no reason was given'}.", extra=extra)
    return job


def embeddings_from(answer: Any) -> Embeddings:
    """Embeddings from the OpenAI route's answer or a stored job's result."""
    items = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return read(Embeddings, answer)  # says what is missing
    ordered = sorted(items, key=lambda item: int(item.get("index", 0)))
    vectors = [item.get("embedding") for item in ordered]
    usage = answer.get("usage")
    shaped = {"model": answer.get("model"), "vectors": vectors, "usage": usage, "job_id": _job_id(usage)}
    return read(Embeddings, shaped)


def _answer(answer: Any, said: Callable[[Any], dict[str, Any]]) -> Answer:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return read(Answer, answer)  # says what is missing
    shaped = [{**choice, **said(choice)} for choice in choices]
    return read(Answer, {**answer, "choices": shaped, "job_id": _job_id(answer.get("usage"))})


def _chat_choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    found = choice.get("message")
    message = found if isinstance(found, dict) else {}
    calls = [call for call in message.get("tool_calls") or () if isinstance(call, dict)]
    return {
        "text": message.get("content") or "",
        "reasoning": message.get("reasoning_content") or "",
        "tool_calls": [plain(ToolCall.of(call)) for call in calls],
    }


def _job_id(usage: Any) -> str | None:
    charge = usage.get("potluck") if isinstance(usage, dict) else None
    return charge.get("job_id") if isinstance(charge, dict) else None


__all__ = ["Choice", "Piece", "Pool", "Usage"]
