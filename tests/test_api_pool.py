"""The pool's own routes: me, balance, quote, jobs, workers, members, keys, join tokens, enrolment, renewal."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from fixtures_api import MODEL, TEXT, Said, Stand, chat_body, error_of, open_stand

from coordinator.core.jobs import JobId
from potluck.identity import JoinToken, WorkerIdentity, fingerprint_of, renewal_message
from potluck.results import Balance, Job, Me, Model, Queue, Quote, Status, Worker, read, read_all
from potluck.v1 import session_pb2, work_pb2


async def get(stand: Stand, path: str, by: str = "alice", **more: Any) -> Any:
    response = await stand.ask("GET", path, by=by, **more)
    assert response.status_code == 200, response.text
    return response.json()


async def post(stand: Stand, path: str, body: dict[str, Any], by: str = "alice") -> Any:
    response = await stand.ask("POST", path, by=by, json=body)
    assert response.is_success, response.text
    return response.json()


async def end_of(stand: Stand, job_id: str) -> None:
    """Wait until the books have the job's end."""
    async with asyncio.timeout(10):
        while (job := await stand.context.store.job(JobId(job_id))) is None or not job.ended:
            await stand.ticker.turn()


async def test_who_am_i(stand: Stand) -> None:
    """In the shape that the client reads; the key only by its beginning."""
    body = await get(stand, "/pool/v1/me")
    me = read(Me, body)
    assert (me.member.name, me.member.role, me.pool) == ("alice", "member", "potluck")
    assert me.account == stand.members["alice"].account
    assert me.key.scopes == ("inference", "read", "account")
    assert stand.keys["alice"] not in str(body)


async def test_balance_and_status_after_an_answer(stand: Stand) -> None:
    """What alice paid went to bob and the commons: the sum over all is 0."""
    await stand.chat()
    alice = read(Balance, await get(stand, "/pool/v1/balance", "alice"))
    bob = read(Balance, await get(stand, "/pool/v1/balance", "bob"))
    assert alice.balance < 0 < bob.balance
    assert alice.available == alice.balance - alice.reserved + alice.credit_line
    status = read(Status, await get(stand, "/pool/v1/status"))
    assert status.ledger_sum == 0


async def test_a_quote_runs_nothing_and_a_charge_never_exceeds_it(stand: Stand) -> None:
    body = {"kind": "chat", "request": chat_body(max_tokens=50)}
    quote = read(Quote, await post(stand, "/pool/v1/quote", body))
    assert (quote.model, quote.max_tokens) == (MODEL, 50)
    assert not stand.bench.assigned
    usage = (await stand.chat(max_tokens=50)).json()["usage"]
    assert 0 < usage["potluck"]["charge"] <= quote.quote
    assert usage["prompt_tokens"] == quote.prompt_tokens


async def test_an_error_in_a_request_inside_another_body_names_its_place(stand: Stand) -> None:
    response = await stand.ask("POST", "/pool/v1/quote", json={"kind": "chat", "request": {"model": MODEL}})
    assert error_of(response)["param"] == "request.messages"
    for path in ("/pool/v1/quote", "/pool/v1/jobs"):
        for kind in ("poem", "batch", "finetune"):  # a batch and a fine-tune have routes of their own
            response = await stand.ask("POST", path, json={"kind": kind, "request": {}})
            assert (response.status_code, error_of(response)["param"]) == (400, "kind")


async def test_models_and_the_catalogue(stand: Stand) -> None:
    models = {m.name: m for m in read_all(Model, await get(stand, "/pool/v1/models"))}
    assert models[MODEL].state == "ready"
    catalogue = await get(stand, "/pool/v1/models", params={"format": "catalogue"})
    assert catalogue
    wrong = await stand.ask("GET", "/pool/v1/models", params={"format": "xml"})
    assert (wrong.status_code, error_of(wrong)["param"]) == (400, "format")


async def test_a_stored_job_keeps_its_answer(stand: Stand) -> None:
    """It runs without a waiting client; its result is what the OpenAI route would have answered."""
    made = await post(stand, "/pool/v1/jobs", {"kind": "chat", "request": chat_body()})
    await end_of(stand, made["id"])
    job = read(Job, await get(stand, f"/pool/v1/jobs/{made['id']}"))
    assert (job.kind, job.state, job.model, job.member) == ("chat", "succeeded", MODEL, "alice")
    assert job.charge is not None
    assert 0 < job.charge <= job.quote == made["quote"]
    [attempt] = job.attempts
    assert (attempt.number, attempt.worker, attempt.state) == (1, stand.worker, "succeeded")
    assert attempt.tokens > 0
    assert job.hold == job.quote
    assert job.timing is not None
    assert job.timing.prefill_s is not None
    assert job.timing.decode_s is not None
    parts = job.timing.waited_s + job.timing.prefill_s + job.timing.decode_s
    assert job.timing.total_s == pytest.approx(parts, abs=0.01)
    result = await get(stand, f"/pool/v1/jobs/{made['id']}/result")
    assert result["choices"][0]["message"]["content"] == TEXT
    assert result["usage"]["potluck"]["charge"] == job.charge


async def test_a_stored_embedding(stand: Stand) -> None:
    request = {"model": MODEL, "input": ["a", "b"]}
    made = await post(stand, "/pool/v1/jobs", {"kind": "embedding", "request": request})
    await end_of(stand, made["id"])
    timing = (await get(stand, f"/pool/v1/jobs/{made['id']}"))["timing"]
    assert (timing["prefill_s"], timing["decode_s"]) == (None, None), "vectors come all at once"
    result = await get(stand, f"/pool/v1/jobs/{made['id']}/result")
    assert [item["index"] for item in result["data"]] == [0, 1]


@pytest.mark.parametrize(
    ("kind", "change", "param"),
    [
        ("chat", {"stream": True}, "request.stream"),
        ("chat", {"logprobs": True}, "request.logprobs"),
        ("completion", {"echo": True}, "request.echo"),
        ("completion", {"prompt": ["a", "b"]}, "request.prompt"),
        ("embedding", {"encoding_format": "base64"}, "request.encoding_format"),
    ],
)
async def test_what_a_stored_answer_cannot_show_is_refused(
    stand: Stand, kind: str, change: dict[str, Any], param: str
) -> None:
    request = {
        "chat": chat_body(),
        "completion": {"model": MODEL, "prompt": "a"},
        "embedding": {"model": MODEL, "input": "a"},
    }
    body = {"kind": kind, "request": {**request[kind], **change}}
    response = await stand.ask("POST", "/pool/v1/jobs", json=body)
    assert (response.status_code, error_of(response)["param"]) == (400, param)


async def test_the_same_idempotency_key_names_the_same_stored_job(stand: Stand) -> None:
    """A retry after a lost answer costs nothing; another request under the key is refused."""
    headers = {"idempotency-key": "order 66"}
    body = {"kind": "chat", "request": chat_body()}
    ids = [
        (await stand.ask("POST", "/pool/v1/jobs", headers=headers, json=body)).json()["id"] for _ in range(2)
    ]
    assert ids[0] == ids[1]
    other = {"kind": "chat", "request": chat_body(max_tokens=3)}
    response = await stand.ask("POST", "/pool/v1/jobs", headers=headers, json=other)
    assert (response.status_code, error_of(response)["code"]) == (409, "idempotency_conflict")


async def test_interactive_answers_are_kept_nowhere(stand: Stand) -> None:
    job_id = (await stand.chat()).headers["x-potluck-job-id"]
    response = await stand.ask("GET", f"/pool/v1/jobs/{job_id}/result")
    assert (response.status_code, error_of(response)["code"]) == (404, "result_not_kept")


async def test_a_running_stored_job_has_no_result_yet_and_can_be_cancelled(stand: Stand) -> None:
    begun = asyncio.Event()

    async def script(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        yield [work_pb2.Delta(text="one two")]
        begun.set()
        await asyncio.Event().wait()

    stand.bench.script = script
    made = await post(stand, "/pool/v1/jobs", {"kind": "chat", "request": chat_body()})
    await asyncio.wait_for(begun.wait(), 10)
    early = await stand.ask("GET", f"/pool/v1/jobs/{made['id']}/result")
    assert (early.status_code, error_of(early)["code"]) == (409, "job_not_finished")
    stranger = await stand.ask("POST", f"/pool/v1/jobs/{made['id']}/cancel", by="bob")
    assert (stranger.status_code, error_of(stranger)["code"]) == (404, "job_not_found")
    for cancelled in (True, False):
        answer = await post(stand, f"/pool/v1/jobs/{made['id']}/cancel", {})
        assert answer["cancelled"] is cancelled
        await end_of(stand, made["id"])
    job = read(Job, await get(stand, f"/pool/v1/jobs/{made['id']}"))
    assert job.state == "cancelled"
    assert job.why
    kept = await get(stand, f"/pool/v1/jobs/{made['id']}/result")
    assert kept["choices"][0]["message"]["content"] == "one two", "what was paid is not withheld"
    assert (kept["usage"]["potluck"]["state"], kept["usage"]["potluck"]["charge"]) == (
        "cancelled",
        job.charge,
    )


async def test_jobs_are_listed_in_pages_and_to_their_owner(stand: Stand) -> None:
    """The newest first; others' jobs are neither listed nor shown, but an admin sees all."""
    ids = [(await stand.chat()).headers["x-potluck-job-id"] for _ in range(3)]
    first = await get(stand, "/pool/v1/jobs", params={"limit": 2})
    assert [job["id"] for job in first["data"]] == ids[:0:-1]
    assert first["has_more"] is True
    second = await get(stand, "/pool/v1/jobs", params={"limit": 2, "before": ids[1]})
    assert ([job["id"] for job in second["data"]], second["has_more"]) == (ids[:1], False)
    assert (await get(stand, "/pool/v1/jobs", params={"state": "failed"}))["data"] == []
    chats = await get(stand, "/pool/v1/jobs", params={"kind": "chat", "state": "succeeded"})
    assert [job["id"] for job in chats["data"]] == ids[::-1]
    assert (await get(stand, "/pool/v1/jobs", params={"kind": "batch"}))["data"] == []
    assert (await get(stand, "/pool/v1/jobs", by="bob"))["data"] == []
    everybody = await get(stand, "/pool/v1/jobs", by="admin", params={"all": "true"})
    assert {job["member"] for job in everybody["data"]} == {"alice"}
    assert (await stand.ask("GET", f"/pool/v1/jobs/{ids[0]}", by="bob")).status_code == 404
    assert (await stand.ask("GET", f"/pool/v1/jobs/{ids[0]}", by="admin")).status_code == 200
    assert (await stand.ask("GET", "/pool/v1/jobs", by="bob", params={"all": "true"})).status_code == 403
    for params in (
        {"limit": "0"},
        {"limit": "x"},
        {"state": "x"},
        {"kind": "x"},
        {"before": "job_none"},
        {"before": ""},
    ):
        response = await stand.ask("GET", "/pool/v1/jobs", params=params)
        assert response.status_code == 400
        assert [error_of(response)["param"]] == list(params)
    others = await stand.ask("GET", "/pool/v1/jobs", by="bob", params={"before": ids[0]})
    assert others.status_code == 400  # an empty page would tell that there is such a job


async def test_a_job_that_waits_says_where_it_stands_and_why(stand: Stand) -> None:
    """Its worker is paused: the job waits, as the only one, and nobody knows until when."""
    fleet = stand.context.pool.engine.fleet
    worker = fleet.workers[stand.worker]
    fleet.says(worker, draining=False, state="paused", why="")
    made = await post(stand, "/pool/v1/jobs", {"kind": "chat", "request": chat_body()})
    job = read(Job, await get(stand, f"/pool/v1/jobs/{made['id']}"))
    why = f"no worker is free for {MODEL}: of 1 connected, 1 paused by the owner"
    assert job.queue == Queue(place=1, of=1, expected_start_s=None, why=why)
    await stand.context.pool.ticker.committed()
    fleet.says(worker, draining=False, state="sharing", why="")
    await end_of(stand, made["id"])
    assert "queue" not in await get(stand, f"/pool/v1/jobs/{made['id']}")


async def test_members_are_the_admins_business(stand: Stand) -> None:
    """A new member can ask at once; the name is unique; everybody else is refused."""
    made = await post(stand, "/pool/v1/members", {"name": "carol", "credit_line": 7}, by="admin")
    assert set(made) >= {"id", "name", "key"}
    balance = await get(stand, "/pool/v1/balance", by=made["key"])
    assert (balance["credit_line"], balance["available"]) == (7, 7)
    listed = await get(stand, "/pool/v1/members", by="admin")
    assert {member["name"] for member in listed["data"]} == {"admin", "alice", "bob", "carol"}
    again = await stand.ask("POST", "/pool/v1/members", by="admin", json={"name": "Carol"})
    assert (again.status_code, error_of(again)["code"]) == (409, "name_taken")
    for method in ("GET", "POST"):
        refused = await stand.ask(method, "/pool/v1/members", json={"name": "dave"})
        assert (refused.status_code, error_of(refused)["code"]) == (403, "admin_needed")


async def test_keys_are_shown_once_and_are_their_members(stand: Stand) -> None:
    made = await post(stand, "/pool/v1/keys", {"name": "laptop", "expires_s": 3_600})
    assert made["key"].startswith("sk-potluck-")
    listed = await get(stand, "/pool/v1/keys")
    assert {key["name"] for key in listed["data"]} == {"first", "laptop"}
    assert made["key"] not in str(listed)
    assert (await stand.ask("DELETE", f"/pool/v1/keys/{made['id']}", by="bob")).status_code == 404
    child = await post(stand, "/pool/v1/keys", {"name": "child"}, by=made["key"])
    assert child["expires_at"] == made["expires_at"]  # it does not outlive the key that made it
    assert (await stand.ask("DELETE", f"/pool/v1/keys/{made['id']}", by="admin")).status_code == 200


def _enrolment(token: str, identity: WorkerIdentity, name: str = "garage") -> dict[str, Any]:
    return {
        "token": token,
        "name": name,
        "csr": identity.csr().decode(),
        "receipt_key": base64.b64encode(identity.receipt_public_key()).decode(),
    }


async def _enrolled(stand: Stand) -> tuple[WorkerIdentity, dict[str, Any]]:
    token = await post(stand, "/pool/v1/join-tokens", {})
    identity = WorkerIdentity.generate()
    return identity, await post(stand, "/pool/v1/enrol", _enrolment(token["token"], identity), by="nobody")


async def test_a_worker_joins_by_its_token(stand: Stand) -> None:
    """No key is needed; the certificate is of the pool's CA, whose fingerprint the token carries."""
    made = await post(stand, "/pool/v1/join-tokens", {"uses": 1, "expires_s": 60})
    assert made["commands"][0] == f"potluck worker join {stand.url} --token {made['token']}"
    identity = WorkerIdentity.generate()
    answer = await post(stand, "/pool/v1/enrol", _enrolment(made["token"], identity), by="nobody")
    assert (answer["name"], answer["member"], answer["pool"]) == ("garage", "alice", "potluck")
    assert answer["grpc"] == "127.0.0.1:7777"
    JoinToken.parse(made["token"]).check_pool(answer["ca"].encode())
    certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(answer["ca"].encode()))
    assert certificate.public_key() == identity.tls_key.public_key()
    [view] = [
        w for w in read_all(Worker, await get(stand, "/pool/v1/workers")) if w.id == answer["worker_id"]
    ]
    assert (view.name, view.member, view.state) == ("garage", "alice", "away")


async def test_who_made_a_join_token_sees_whom_it_let_in(stand: Stand) -> None:
    """And nobody else does, not even by its id."""
    made = await post(stand, "/pool/v1/join-tokens", {"uses": 2})
    path = f"/pool/v1/join-tokens/{made['id']}"
    before = await get(stand, path)
    assert (before["uses"], before["uses_max"], before["workers"]) == (0, 2, [])
    joined = await post(stand, "/pool/v1/enrol", _enrolment(made["token"], WorkerIdentity.generate()))
    after = await get(stand, path)
    assert (after["uses"], after["workers"]) == (1, [{"id": joined["worker_id"], "name": "garage"}])
    assert made["token"] not in str(after)
    for by in ("bob", "admin"):
        refused = await stand.ask("GET", path, by=by)
        assert (refused.status_code, error_of(refused)["code"]) == (404, "join_token_not_found")


async def test_one_worker_with_what_it_earned_and_tried(stand: Stand) -> None:
    """To its owner and admins also for whom; what its attempts were paid, by day and in all, is one sum."""
    (await stand.chat()).raise_for_status()
    path = f"/pool/v1/workers/{stand.worker}"
    seen = await get(stand, path)
    assert "attempts" not in seen
    assert (seen["name"], seen["member"], seen["state"], seen["revoked_at"]) == (
        "rig",
        "bob",
        "sharing",
        None,
    )
    for by in ("bob", "admin"):
        body = await get(stand, path, by=by)
        [tried] = body["attempts"]
        assert (tried["member"], tried["model"], tried["state"]) == ("alice", MODEL, "succeeded")
        assert tried["paid"] == body["earned"] == sum(day["earned"] for day in body["days"]) > 0
        assert len(body["days"]) == 30
        assert body["days"][-1]["earned"] == body["earned"]
    assert stand.available("bob")["balance"] == body["earned"]
    for _ in range(2):  # again, since the first answer may have been lost: it is one event
        (await stand.ask("DELETE", path, by="bob")).raise_for_status()
    told = (await get(stand, "/pool/v1/audit", by="admin"))["data"]
    assert [event["action"] for event in told].count("worker_revoked") == 1
    gone = await get(stand, path, by="bob")
    assert (gone["state"], gone["earned"]) == ("revoked", body["earned"])
    assert gone["revoked_at"]
    missing = await stand.ask("GET", "/pool/v1/workers/wrk_none")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "worker_not_found")


async def test_join_tokens_that_let_nobody_in(stand: Stand) -> None:
    """Used, expired, unknown, mistyped, of another pool: each has a code of its own."""

    async def enrol(token: str) -> tuple[int, str]:
        body = _enrolment(token, WorkerIdentity.generate())
        response = await stand.http.post(f"{stand.url}/pool/v1/enrol", json=body)
        return response.status_code, error_of(response)["code"]

    used = (await post(stand, "/pool/v1/join-tokens", {}))["token"]
    await post(stand, "/pool/v1/enrol", _enrolment(used, WorkerIdentity.generate()))
    assert await enrol(used) == (409, "join_token_used")
    expired = (await post(stand, "/pool/v1/join-tokens", {"expires_s": 5}))["token"]
    stand.clock.ahead_s += 6
    assert await enrol(expired) == (409, "join_token_expired")
    assert await enrol(str(JoinToken.create(stand.context.ca.fingerprint()))) == (404, "join_token_unknown")
    assert await enrol(str(JoinToken.create("0" * 64))) == (400, "join_token_of_another_pool")
    assert await enrol(used[:-1] + ("0" if used[-1] != "0" else "1")) == (400, "join_token_malformed")


async def test_guessing_join_tokens_is_slowed_down(stand: Stand) -> None:
    wrong = _enrolment(str(JoinToken.create(stand.context.ca.fingerprint())), WorkerIdentity.generate())
    codes = [(await stand.http.post(f"{stand.url}/pool/v1/enrol", json=wrong)).status_code for _ in range(11)]
    assert codes == [404] * 10 + [429]


async def test_enrolment_needs_a_sound_request_for_a_certificate(stand: Stand) -> None:
    """A refused one leaves the token as it was."""
    token = (await post(stand, "/pool/v1/join-tokens", {}))["token"]
    identity = WorkerIdentity.generate()
    good = _enrolment(token, identity)
    rsa = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    weak = rsa.sign(generate_private_key(65_537, 2_048), SHA256()).public_bytes(Encoding.PEM).decode()
    for change, param in (
        ({"csr": "x"}, "csr"),
        ({"csr": weak}, "csr"),
        ({"receipt_key": "AAAA"}, "receipt_key"),
        ({"receipt_key": "é"}, "receipt_key"),
        ({"name": "a\nb"}, "name"),
    ):
        response = await stand.http.post(f"{stand.url}/pool/v1/enrol", json={**good, **change})
        assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert (await stand.http.post(f"{stand.url}/pool/v1/enrol", json=good)).status_code == 201


def _renewal(worker_id: str, identity: WorkerIdentity, at: float) -> dict[str, Any]:
    csr = identity.csr().decode()
    signature = identity.sign(renewal_message(worker_id=worker_id, csr=csr, at=int(at)))
    return {
        "worker_id": worker_id,
        "csr": csr,
        "at": int(at),
        "signature": base64.b64encode(signature).decode(),
    }


async def test_a_certificate_is_renewed_even_long_after_it_expired(stand: Stand) -> None:
    identity, enrolled = await _enrolled(stand)
    stand.clock.ahead_s += 30 * 86_400
    body = _renewal(enrolled["worker_id"], identity, stand.clock.now())
    response = await stand.http.post(f"{stand.url}/pool/v1/renew", json=body)
    assert response.status_code == 200
    answer = response.json()
    assert fingerprint_of(answer["ca"].encode()) == stand.context.ca.fingerprint()
    certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
    assert certificate.not_valid_after_utc.timestamp() > stand.clock.now()


async def test_a_renewal_is_judged_by_the_machines_clock_as_it_is_now(stand: Stand) -> None:
    """TLS judges the certificate by it, and the worker's clock is right: so it was not the worker's that was wrong."""
    identity, enrolled = await _enrolled(stand)
    stand.clock.set_right_s = -3 * 3_600.0
    body = _renewal(enrolled["worker_id"], identity, stand.clock.wall())
    response = await stand.http.post(f"{stand.url}/pool/v1/renew", json=body)
    assert response.status_code == 200
    certificate = x509.load_pem_x509_certificate(response.json()["certificate"].encode())
    assert certificate.not_valid_after_utc.timestamp() == pytest.approx(
        stand.clock.wall() + 7 * 86_400, abs=60
    )


async def test_renewals_that_are_refused(stand: Stand) -> None:
    """Not signed by the enrolled key, changed, too old or too early, unknown, revoked."""
    identity, enrolled = await _enrolled(stand)
    worker_id, now = enrolled["worker_id"], stand.clock.now()
    good = _renewal(worker_id, identity, now)

    async def renew(body: dict[str, Any]) -> tuple[int, str]:
        response = await stand.http.post(f"{stand.url}/pool/v1/renew", json=body)
        return response.status_code, error_of(response)["code"]

    assert await renew(_renewal(worker_id, WorkerIdentity.generate(), now)) == (401, "invalid_signature")
    assert await renew({**good, "at": good["at"] + 1}) == (401, "invalid_signature")
    assert await renew({**good, "signature": "AAAA"}) == (401, "invalid_signature")
    for wrong in (-310, 310, 10**15):
        assert await renew(_renewal(worker_id, identity, now + wrong)) == (400, "stale_request")
    assert await renew(_renewal("wrk_nobody", identity, now)) == (404, "worker_not_found")
    assert (await stand.ask("DELETE", f"/pool/v1/workers/{worker_id}")).status_code == 200
    assert await renew(_renewal(worker_id, identity, now)) == (403, "worker_revoked")


async def test_a_worker_is_removed_by_its_owner_or_an_admin(stand: Stand) -> None:
    """Its stream is closed and nothing is given to it any more."""
    path = f"/pool/v1/workers/{stand.worker}"
    refused = await stand.ask("DELETE", path)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "not_your_worker")
    stream = stand.context.pool.sessions.streams[stand.worker]
    assert (await stand.ask("DELETE", path, by="bob")).status_code == 200
    assert stream.ended.is_set()
    assert stand.worker not in [w["id"] for w in await get(stand, "/pool/v1/workers")]
    assert (await stand.ask("DELETE", "/pool/v1/workers/wrk_nobody", by="admin")).status_code == 404
    response = await stand.chat()
    assert (response.status_code, error_of(response)["code"]) == (400, "no_worker_could_serve")


async def test_a_request_may_name_workers_as_the_lists_do(stand: Stand) -> None:
    """By name or by id; a name that nobody has is refused at once."""
    for named in ("rig", stand.worker):
        assert (await stand.chat(potluck={"workers": [named]})).status_code == 200
    response = await stand.chat(potluck={"workers": ["rigg"]})
    assert (response.status_code, error_of(response)["code"]) == (400, "no_worker_could_serve")


async def test_a_request_may_say_how_long_it_waits(stand: Stand) -> None:
    """Then it ends with the reason, and nothing is held."""
    stand.context.pool.engine.disconnect(stand.worker, stand.context.pool.now())
    response = await stand.chat(potluck={"wait_s": 0.2})
    assert (response.status_code, error_of(response)["code"]) == (503, "no_worker_available")
    assert error_of(response)["message"].startswith("No worker that serves")
    assert stand.available("alice")["reserved"] == 0
    for wrong in (0, -1, "soon", 10**9):
        refused = await stand.chat(potluck={"wait_s": wrong})
        assert (refused.status_code, error_of(refused)["param"]) == (400, "potluck.wait_s")


async def test_held_earnings_are_explained_wherever_they_show(tmp_path: Path) -> None:
    """In a pool of strangers: the balance and the worker say what is missing; an admin may vouch for it."""
    async with open_stand(tmp_path, trust="strangers") as stand:
        assert (await stand.chat()).status_code == 200
        await stand.ticker.committed()
        balance = await get(stand, "/pool/v1/balance", by="bob")
        assert balance["held"] > 0
        assert balance["balance"] == 0
        why = "of rig: 9 more of 10 jobs without a dispute, and 24 more hours"
        assert balance["held_why"].endswith(why)
        [rig] = await get(stand, "/pool/v1/workers")
        assert (rig["proven"], rig["held"], rig["missing"]) == (
            False,
            balance["held"],
            why.partition(": ")[2],
        )
        refused = await stand.ask("POST", f"/pool/v1/workers/{stand.worker}/vouch", by="alice", json={})
        assert refused.status_code == 403
        trusted = await stand.chat(potluck={"workers": "trusted"})
        assert trusted.status_code == 400, "nobody is proven yet, and alice has no worker of her own"
        made = await post(stand, f"/pool/v1/workers/{stand.worker}/vouch", {}, by="admin")
        assert made["released"] == balance["held"]
        after = await get(stand, "/pool/v1/balance", by="bob")
        assert (after["held"], after["balance"]) == (0, balance["held"])
        assert "held_why" not in after
        assert (await stand.chat(potluck={"workers": "trusted"})).status_code == 200


async def test_one_key_at_the_same_moment_is_one_job_whatever_becomes_of_it(stand: Stand) -> None:
    """Submitted by many and cancelled by others at once: one job, one end, and nobody meets a mistake of ours."""
    headers, body = {"idempotency-key": "storm"}, {"kind": "chat", "request": chat_body()}
    for round_ in range(12):
        headers["idempotency-key"] = f"storm {round_}"
        digest = hashlib.sha256(f"{stand.members['alice'].id}\nstorm {round_}".encode()).digest()[:15]
        job_id = f"job_{base64.b32encode(digest).decode().lower()}"
        submits = [stand.ask("POST", "/pool/v1/jobs", headers=headers, json=body) for _ in range(10)]
        cancels = [stand.ask("POST", f"/pool/v1/jobs/{job_id}/cancel", json={}) for _ in range(6)]
        answers = await asyncio.gather(*(one for pair in zip(submits, cancels, strict=False) for one in pair))
        answers += await asyncio.gather(*submits[6:])
        assert {answer.status_code for answer in answers} <= {200, 202, 404}
        assert {answer.json()["id"] for answer in answers if answer.status_code == 202} == {job_id}
        await end_of(stand, job_id)
    await stand.ticker.committed()
    assert await stand.context.store.verify() == []
    assert stand.context.pool.engine.book.total() == 0
