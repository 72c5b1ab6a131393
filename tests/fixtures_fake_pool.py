"""A small real HTTP server that answers in the pool's shapes, and as wrongly as the model's name asks it to.

The client's own behaviour is proved against it (statuses, broken streams, retries); that the shapes are those of
the real coordinator is proved by the tests that start one.
"""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "sk-potluck-carol-0000000000000000000000000000000000"
ADMIN_KEY = "sk-potluck-admin-0000000000000000000000000000000000"
WAIT_S = 20.0
ERRORS: dict[str, tuple[int, str, str]] = {
    "poor": (402, "insufficient_credits", "This can cost 5 credits, and 1 is available."),
    "missing": (404, "model_not_found", "There is no model missing; close to it: mixing."),
    "long": (400, "context_length_exceeded", "4000 tokens do not fit into 2048."),
    "limited": (429, "rate_limit_exceeded", "Too many requests."),
    "conflict": (409, "conflict", "That exists already."),
    "forbidden": (403, "admin_needed", "This needs an admin's key."),
    "crashed": (500, "internal", "The coordinator has a bug."),
}


@dataclass(slots=True)
class FakePool:
    url: str = ""
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # paths with their queries
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    loading_left: int = 0
    looks_until_end: int = 0  # how often a job is looked at before it ends
    queue: dict[str, Any] | None = None  # where every job stands that is looked at
    end_state: str = "succeeded"
    left_early: threading.Event = field(default_factory=threading.Event)
    streaming: threading.Event = field(default_factory=threading.Event)
    empty: bool = False
    limits: dict[str, Any] = field(default_factory=dict)  # carol's own, as an admin set them
    held_why: str | None = None
    movements: int = 3  # lines in the statement

    def bodies(self, path: str) -> list[Any]:
        return [body for _, seen, _, body in self.requests if seen == path]

    def queries(self, path: str) -> list[dict[str, str]]:
        return [query for seen, query in self.asked if seen == path]

    def headers(self, path: str) -> list[dict[str, str]]:
        return [headers for _, seen, headers, _ in self.requests if seen == path]

    def new_job(self, kind: str, model: str) -> str:
        job_id = f"job_{len(self.jobs):04d}"
        self.jobs[job_id] = {
            "id": job_id,
            "kind": kind,
            "state": "queued",
            "model": model,
            "member": "carol",
            "quote": 300_000,
            "charge": None,
            "attempts": [],
            "created_at": "2026-11-23T10:00:00Z",
            "ended_at": None,
            "why": None,
            "looks": 0,
        }
        return job_id


def error(status: int, code: str, message: str, **more: Any) -> Response:
    kinds = {401: "authentication_error", 402: "insufficient_credits", 404: "not_found_error"}
    body = {
        "message": message,
        "type": kinds.get(status, "invalid_request_error"),
        "code": code,
        "param": None,
    }
    headers = {"x-request-id": "req_1"} | ({"retry-after": "1"} if status in {429, 503} else {})
    return JSONResponse({"error": {**body, **more}}, status, headers)


def usage(tokens: int, job_id: str) -> dict[str, Any]:
    return {
        "prompt_tokens": 7,
        "completion_tokens": tokens,
        "total_tokens": 7 + tokens,
        "potluck": {"charge": 270 * tokens, "job_id": job_id},
    }


class Guard:
    """Writes down every request, and lets in who has a key."""

    def __init__(self, fake: FakePool, app: Starlette) -> None:
        self.fake, self.app = fake, app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        content = await request.body()
        body = json.loads(content) if content else None
        self.fake.asked.append((request.url.path, dict(request.query_params)))
        self.fake.requests.append((request.method, request.url.path, dict(request.headers), body))
        left = [{"type": "http.request", "body": content, "more_body": False}]

        async def again() -> Any:
            return left.pop() if left else await receive()

        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        answer: Any = self.app
        open_to_all = request.url.path == "/pool/v1/invites/accept"
        if key not in {KEY, ADMIN_KEY} and not open_to_all:
            answer = error(401, "invalid_api_key", "This API key is not valid here.")
        await answer(scope, again, send)


CALL_START: dict[str, Any] = {
    "tool_calls": [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a'}}
    ]
}
CALL_REST: dict[str, Any] = {"tool_calls": [{"index": 0, "function": {"arguments": '": 1}'}}]}


class Routes:
    def __init__(self, fake: FakePool) -> None:
        self.fake = fake

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        model = body["model"]
        if model == "loading" and self.fake.loading_left > 0:
            self.fake.loading_left -= 1
            return error(503, "model_loading", "loading is not ready.", loading={"state": "downloading"})
        if model in ERRORS:
            return error(*ERRORS[model])
        job_id = self.fake.new_job("chat", model)
        words = ["You", " said:", f" {body['messages'][-1]['content']}", " \u2028🍲"]
        if not body.get("stream"):
            message: dict[str, Any] = {"role": "assistant", "content": "".join(words)}
            if model == "thinking":
                call = {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"a": 1}'},
                }
                message |= {"reasoning_content": "Hm, soup.", "tool_calls": [call]}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            head = {"id": "chatcmpl_1", "object": "chat.completion", "created": 1, "model": model}
            return JSONResponse({**head, "choices": [choice], "usage": usage(len(words), job_id)})
        headers = {"x-potluck-job-id": job_id}
        return StreamingResponse(self.stream(model, words, job_id), 200, headers, "text/event-stream")

    async def stream(self, model: str, words: list[str], job_id: str) -> AsyncIterator[str]:
        def event(**more: Any) -> str:
            return f"data: {json.dumps({'id': 'chatcmpl_1', 'model': model, **more}, ensure_ascii=False)}\n\n"

        def chunk(delta: dict[str, Any], reason: str | None = None) -> str:
            return event(choices=[{"index": 0, "delta": delta, "finish_reason": reason}], usage=None)

        yield chunk({"role": "assistant", "content": ""})
        if model == "thinking":
            for part in (
                {"reasoning_content": "Hm, \x1b[2J"},
                {"reasoning_content": "soup."},
                CALL_START,
                CALL_REST,
            ):
                yield chunk({"content": None, "reasoning_content": None, **part})
        for word in words[:2]:
            yield chunk({"content": word})
        self.fake.streaming.set()
        if model == "broken":
            return
        if model == "erring":
            yield event(
                error={"message": "Every worker is gone.", "type": "server_error", "code": "worker_lost"}
            )
            return
        if model == "slow":
            try:
                await asyncio.wait_for(asyncio.Event().wait(), WAIT_S)  # until the client leaves
            finally:
                self.fake.left_early.set()
        for word in words[2:]:
            yield chunk({"content": word})
        yield chunk({}, "stop")
        yield event(choices=[], usage=usage(len(words), job_id))
        yield "data: [DONE]\n\n"

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        choice = {"index": 0, "text": f"{body['prompt']} and on", "finish_reason": "length", "logprobs": None}
        job_id = self.fake.new_job("completion", body["model"])
        return JSONResponse(
            {"id": "c", "model": body["model"], "choices": [choice], "usage": usage(2, job_id)}
        )

    async def embeddings(self, request: Request) -> Response:
        body = await request.json()
        data = [{"index": i, "embedding": [0.5, float(i)]} for i in reversed(range(len(body["input"])))]
        used = {"prompt_tokens": 5, "total_tokens": 5, "potluck": {"charge": 9, "job_id": "job_e"}}
        return JSONResponse({"object": "list", "data": data, "model": body["model"], "usage": used})

    async def quote(self, request: Request) -> Response:
        body = await request.json()
        model = body["request"]["model"]
        if model in ERRORS:
            return error(*ERRORS[model])
        return JSONResponse({"quote": 1_234_567, "prompt_tokens": 7, "max_tokens": 1024, "model": model})

    async def me(self, request: Request) -> Response:
        role = "admin" if request.headers["authorization"].endswith(ADMIN_KEY) else "member"
        key = {
            "id": "key_1",
            "name": "first",
            "prefix": "sk-potluck-caro",
            "scopes": [role],
            "expires_at": None,
        }
        member = {"id": "mem_1", "name": "carol", "role": role}
        return JSONResponse({"member": member, "account": "acc_1", "key": key, "pool": "kitchen", "newer": 1})

    async def balance(self, _: Request) -> Response:
        amounts = {
            "balance": -271_234,
            "reserved": 0,
            "held": 0,
            "credit_line": 10**9,
            "available": 999_728_766,
        }
        if self.fake.held_why:
            amounts["held"] = 3_200_000
        return JSONResponse({"account": "acc_1", **amounts, "held_why": self.fake.held_why})

    async def statement(self, request: Request) -> Response:
        """Lines numbered downwards from `movements`; no filter fits but `code=grant`, which fits nothing."""
        query = request.query_params
        if query.get("from") == "nonsense":
            return error(400, "invalid_value", "from: a day or a time is needed.")
        last = 0 if query.get("code") == "grant" else self.fake.movements
        numbers = [n for n in range(last, 0, -1) if n < int(query.get("before", last + 1))]
        if query.get("format") == "csv":
            rows = "".join(f"{n},{-1_500_000 * n}\r\n" for n in numbers)
            return Response(f"number,amount\r\n{rows}", media_type="text/csv")
        limit = int(query.get("limit", 50))
        data = [movement(n, holds=query.get("holds") == "true") for n in numbers[:limit]]
        return JSONResponse({"data": data, "has_more": len(numbers) > limit})

    async def totals(self, request: Request) -> Response:
        day = request.query_params["by"] == "day"
        total = {"period": "2026-11-26" if day else "2026-11", "given": 5_000_000, "given_net": 4_900_000}
        more = {"fee": 100_000, "taken": 2_000_000, "contribution": 3_000_000, "tokens_served": 12_345}
        return JSONResponse({"data": [total | more] if self.fake.movements else []})

    async def models(self, _: Request) -> Response:
        far = {"name": "far", "kinds": ["chat"], "state": "unserved", "workers": 0}
        small = {
            "name": "small",
            "kinds": ["chat", "completion", "embedding"],
            "features": ["tools", "json_schema"],
            "state": "ready",
            "workers": 1,
        }
        return JSONResponse(
            [] if self.fake.empty else [far, {**small, "aliases": ["tiny"], "context_tokens": 2048}]
        )

    async def workers(self, _: Request) -> Response:
        model = {"name": "small", "engine": "llamacpp", "state": "ready", "why": ""}
        worker = {
            "id": "wrk_1",
            "name": "attic",
            "member": "alice",
            "state": "sharing",
            "why": "",
            "models": [model],
        }
        more: dict[str, Any] = {"engines": ["llamacpp"], "hardware": None, "speed": {}}
        return JSONResponse([] if self.fake.empty else [{**worker, **more}])

    async def status(self, _: Request) -> Response:
        counts = {"workers": {"sharing": 1}, "jobs": {"running": 0}, "models": ["small"], "ledger_sum": 0}
        return JSONResponse({"pool": "kitchen", "version": "0.1.0", **counts, "coordinator_public_key": "k"})

    async def submit(self, request: Request) -> Response:
        body = await request.json()
        if body["request"]["model"] in ERRORS:
            return error(*ERRORS[body["request"]["model"]])
        return JSONResponse(
            {"id": self.fake.new_job(body["kind"], body["request"]["model"]), "quote": 5}, 202
        )

    def seen(self, job: dict[str, Any]) -> dict[str, Any]:
        if self.fake.queue is not None:
            return job | {"queue": self.fake.queue}
        if job["state"] in {"queued", "running"}:
            job["looks"] += 1
            job["state"] = "running"
            if job["looks"] > self.fake.looks_until_end:
                attempt = {
                    "number": 1,
                    "worker": "wrk_1",
                    "state": self.fake.end_state,
                    "tokens": 4,
                    "paid": 1_058,
                }
                job |= {
                    "state": self.fake.end_state,
                    "charge": 1_080,
                    "attempts": [attempt],
                    "why": "the reason",
                }
        return {name: value for name, value in job.items() if name != "looks"}

    async def jobs(self, request: Request) -> Response:
        state, limit = request.query_params.get("state"), int(request.query_params.get("limit", 20))
        kind = request.query_params.get("kind")
        found = [
            job
            for job in reversed(self.fake.jobs.values())
            if state in {None, job["state"]} and kind in {None, job["kind"]}
        ]
        return JSONResponse({"data": found[:limit], "has_more": len(found) > limit})

    async def job(self, request: Request) -> Response:
        found = self.fake.jobs.get(request.path_params["job_id"])
        return (
            JSONResponse(self.seen(found)) if found else error(404, "job_not_found", "You have no such job.")
        )

    async def cancel(self, request: Request) -> Response:
        found = self.fake.jobs.get(request.path_params["job_id"])
        if found is None:
            return error(404, "job_not_found", "You have no such job.")
        found["state"] = "cancelled"
        return JSONResponse({"id": found["id"], "state": "cancelled", "cancelled": True})

    async def result(self, request: Request) -> Response:
        found = self.fake.jobs.get(request.path_params["job_id"])
        if found is None:
            return error(404, "job_not_found", "You have no such job.")
        if found["state"] not in {"succeeded", "failed", "cancelled"}:
            return error(409, "job_not_finished", "It is running.")
        if found["state"] != "succeeded":
            return error(409, "worker_lost", "It has failed.")
        if found["kind"] == "embedding":
            return JSONResponse({"data": [{"index": 0, "embedding": [0.25, 1.5]}], "model": "small"})
        message = {"role": "assistant", "content": "An answer that was kept."}
        return JSONResponse({"id": "c", "model": "small", "choices": [{"index": 0, "message": message}]})

    async def keys(self, request: Request) -> Response:
        if request.method == "GET":
            key = {
                "id": "key_1",
                "name": "first",
                "prefix": "sk-potluck-caro",
                "created_at": "2026-11-23T10:00:00Z",
                "scopes": ["inference", "read"],
                "models": ["small"],
                "limits": {"credits_per_day": 5_000_000, "concurrent_jobs": 2},
            }
            return JSONResponse({"data": [key]})
        body = await request.json()
        made = {"id": "key_2", "name": body["name"], "key": "sk-potluck-new", "expires_at": None}
        narrower = {name: body.get(name, []) for name in ("scopes", "models")}
        return JSONResponse({**made, **narrower, "limits": body.get("limits", {})}, 201)

    async def limits(self, _: Request) -> Response:
        whose = {"of": "member", "name": "carol"}
        minute = {**whose, "limit": "requests_per_minute", "allowed": 600, "used": 3, "set_by": "pool"}
        day = {
            "of": "key",
            "name": "first",
            "limit": "credits_per_day",
            "allowed": 5_000_000,
            "used": 1_250_000,
            "renews_at": "2026-11-24T00:00:00Z",
            "set_by": "key",
        }
        free = {**whose, "limit": "tokens_per_minute", "allowed": None, "used": 0, "set_by": "pool"}
        return JSONResponse({"data": [minute, day, free]})

    async def member_limits(self, request: Request) -> Response:
        if not request.headers["authorization"].endswith(ADMIN_KEY):
            return error(403, "admin_needed", "This needs an admin's key.")
        if request.path_params["member"] != "carol":
            return error(404, "member_not_found", "This pool has no such member.")
        if request.method == "PUT":
            self.fake.limits = await request.json()
        effective = {"requests_per_minute": 600, **self.fake.limits}
        own = {"id": "mem_1", "name": "carol", "limits": self.fake.limits}
        return JSONResponse({**own, "effective": effective})

    async def revoke(self, request: Request) -> Response:
        if request.path_params["key_id"] != "key_1":
            return error(404, "key_not_found", "You have no such key.")
        return JSONResponse({"id": "key_1"})

    async def members(self, request: Request) -> Response:
        if not request.headers["authorization"].endswith(ADMIN_KEY):
            return error(403, "admin_needed", "This needs an admin's key.")
        if request.method == "GET":
            member = {"id": "mem_1", "name": "carol", "role": "member", "credit_line": 10**9}
            return JSONResponse({"data": [member]})
        body = await request.json()
        return JSONResponse({"id": "mem_2", "name": body["name"], "key": "sk-potluck-dave"}, 201)

    async def join_tokens(self, _: Request) -> Response:
        commands = ["potluck worker join URL --token pl1_x", "potluck worker start"]
        return JSONResponse(
            {"token": "pl1_x", "expires_at": "2026-11-24T10:00:00Z", "commands": commands}, 201
        )


def movement(number: int, *, holds: bool) -> dict[str, Any]:
    return {
        "number": number,
        "at": f"2026-11-23T10:00:{number % 60:02d}.000Z",
        "code": "transfer",
        "words": f"sent to bob: {'pizza ' * 20}number {number}",
        "amount": -1_500_000,
        "held": 0,
        "reserved": 2_000_000 if holds else 0,
        "credit_line": 0,
        "balance": -1_500_000 * number,
        "job": None,
        "counterparties": ["bob"],
    }


class Accounts:
    """Gifts, members' standing and invitations; a member named as an error is one."""

    def __init__(self, fake: FakePool) -> None:
        self.fake = fake

    async def transfers(self, request: Request) -> Response:
        body = await request.json()
        if body["to"] in ERRORS:
            return error(*ERRORS[body["to"]])
        if body["to"] == "shaky" and self.fake.loading_left > 0:
            self.fake.loading_left -= 1
            return error(503, "storage_unavailable", "The pool cannot write its books just now.")
        to, left = {"id": "mem_2", "name": body["to"]}, {"balance": 7_500_000, "reserved": 0}
        more = {"note": body.get("note"), "at": "2026-11-24T10:00:00.000Z", "available": 7_500_000}
        return JSONResponse({"id": "trf_1", "to": to, "amount": body["amount"], **left, **more}, 201)

    async def grants(self, request: Request) -> Response:
        body = await request.json()
        commons = {"balance": -body["amount"], "available": 0}
        more = {"at": "2026-11-24T10:00:00.000Z", "reason": body["reason"], "commons": commons}
        to = {"id": "mem_2", "name": body["member"]}
        return JSONResponse({"id": "grt_1", "to": to, "amount": body["amount"], **more}, 201)

    async def member(self, request: Request) -> Response:
        """All of a member's routes: what was asked for is what it is from then on."""
        name, verb = request.path_params["member"], request.path_params.get("verb", "")
        if name in ERRORS:
            return error(*ERRORS[name])
        body = json.loads(await request.body() or b"{}")
        state = {"freeze": "frozen", "close": "closed"}.get(verb, "active")
        line, role = body.get("credit_line", 10**9), body.get("role", "member")
        account = {"account": "acc_2", "balance": 0, "credit_line": line, "created_at": None}
        facts = {"id": "mem_2", "name": name, "role": role, "state": state, "why": body.get("reason")}
        return JSONResponse({**facts, **account})

    async def keys(self, request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"data": [{"id": "key_9", "name": "theirs", "prefix": "sk-potluck-bob"}]})
        made = {"id": "key_9", "name": (await request.json())["name"], "key": "sk-potluck-again"}
        return JSONResponse({**made, "expires_at": None}, 201)

    def invite(self, **more: Any) -> dict[str, Any]:
        times = {"created_at": "2026-11-24T10:00:00.000Z", "expires_at": "2026-12-01T10:00:00.000Z"}
        facts = {"id": "inv_1", "state": "open", "by": "carol", "credit_line": 10**8, "from_pool": False}
        return {**facts, **times, "note": None, "accepted_by": None, "ended_at": None, **more}

    async def invites(self, request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"data": [] if self.fake.empty else [self.invite(accepted_by="dave")]})
        body = await request.json()
        given = {name: body[name] for name in ("credit_line", "note", "from_pool") if name in body}
        commands = [f"potluck login {self.fake.url} --invite pli_x --name NAME"]
        return JSONResponse({**self.invite(**given), "token": "pli_x", "commands": commands}, 201)

    async def revoke(self, request: Request) -> Response:
        if request.path_params["invite_id"] != "inv_1":
            return error(404, "invite_not_found", "You have no such invitation.")
        return JSONResponse({"id": "inv_1", "state": "revoked"})

    async def accept(self, request: Request) -> Response:
        body = await request.json()
        if body["token"] != "pli_good":
            return error(409, "invite_used", "This invitation was used already: ask for another one.")
        more = {"role": "member", "credit_line": 10**8, "pool": "kitchen"}
        return JSONResponse({"id": "mem_3", "name": body["name"], "key": KEY, **more}, 201)

    def routes(self) -> list[Route]:
        return [
            Route("/pool/v1/transfers", self.transfers, methods=["POST"]),
            Route("/pool/v1/grants", self.grants, methods=["POST"]),
            Route("/pool/v1/members/{member}", self.member, methods=["GET", "PATCH"]),
            Route("/pool/v1/members/{member}/keys", self.keys, methods=["GET", "POST"]),
            Route("/pool/v1/members/{member}/{verb}", self.member, methods=["POST"]),
            Route("/pool/v1/invites", self.invites, methods=["GET", "POST"]),
            Route("/pool/v1/invites/accept", self.accept, methods=["POST"]),
            Route("/pool/v1/invites/{invite_id}", self.revoke, methods=["DELETE"]),
        ]


def create(fake: FakePool) -> Guard:
    r = Routes(fake)
    routes = [
        Route("/v1/chat/completions", r.chat, methods=["POST"]),
        Route("/v1/completions", r.completions, methods=["POST"]),
        Route("/v1/embeddings", r.embeddings, methods=["POST"]),
        Route("/pool/v1/quote", r.quote, methods=["POST"]),
        Route("/pool/v1/me", r.me),
        Route("/pool/v1/balance", r.balance),
        Route("/pool/v1/statement", r.statement),
        Route("/pool/v1/statement/totals", r.totals),
        Route("/pool/v1/models", r.models),
        Route("/pool/v1/workers", r.workers),
        Route("/pool/v1/status", r.status),
        Route("/pool/v1/jobs", r.submit, methods=["POST"]),
        Route("/pool/v1/jobs", r.jobs),
        Route("/pool/v1/jobs/{job_id}", r.job),
        Route("/pool/v1/jobs/{job_id}/cancel", r.cancel, methods=["POST"]),
        Route("/pool/v1/jobs/{job_id}/result", r.result),
        Route("/pool/v1/keys", r.keys, methods=["GET", "POST"]),
        Route("/pool/v1/keys/{key_id}", r.revoke, methods=["DELETE"]),
        Route("/pool/v1/limits", r.limits),
        Route("/pool/v1/members/{member}/limits", r.member_limits, methods=["GET", "PUT"]),
        Route("/pool/v1/members", r.members, methods=["GET", "POST"]),
        Route("/pool/v1/join-tokens", r.join_tokens, methods=["POST"]),
    ]
    return Guard(fake, Starlette(routes=[*routes, *Accounts(fake).routes()]))


@contextmanager
def serving(fake: FakePool) -> Iterator[FakePool]:
    """The server in a thread of its own, on a port that the system chose; ended afterwards."""
    listening = socket.create_server(("127.0.0.1", 0))
    fake.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    config = uvicorn.Config(
        create(fake), log_level="critical", ws="none", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="fake-pool")
    thread.start()
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        listening.close()
        assert not thread.is_alive()


@pytest.fixture
def fake_pool() -> Iterator[FakePool]:
    with serving(FakePool()) as fake:
        yield fake
