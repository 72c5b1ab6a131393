"""`potluck worker leave` on a real pool: what runs is finished, receipts arrive, the identity goes, credits stay."""

import contextlib
import json
import threading
from base64 import b64encode
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from fixtures_api import Stand, error_of
from fixtures_pool import Member, Process, RealPool
from test_api_pool import _enrolled, post

from potluck.errors import ExitCode
from potluck.identity import WorkerIdentity, leave_message
from worker.departure import REMOVED
from worker.state import WorkerState


def leave(pool: RealPool, name: str, *flags: str) -> tuple[int, str]:
    done = Process.start(f"leave {name}", ["worker", "leave", *flags], pool.folder / name)
    code = done.popen.wait(90)
    return code, "".join(done.lines)


def kept(pool: RealPool, name: str) -> set[str]:
    return {path.name for path in (pool.folder / name / "worker").iterdir()}


def question(tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": "a b c"}]
    return {"model": "emulator-small", "messages": messages, "max_tokens": tokens}


def interrupted(member: Member, asked: dict[str, Any]) -> None:
    """Ask for what will break off."""
    with contextlib.suppress(httpx2.HTTPError):
        member.api("POST", "/v1/chat/completions", json=asked)


def answers(home: Path, tokens: int) -> bool:
    return any(one.tokens >= tokens for one in WorkerState.load(home).attempts)


def holds(home: Path) -> bool:
    """Receipts that the pool has not acknowledged."""
    return WorkerState.load(home).receipts_waiting > 0


def test_a_worker_leaves_while_it_answers_and_its_member_keeps_what_it_earned(real_pool: RealPool) -> None:
    daemon = real_pool.add_emulator("rig", "bob", tpot_ms=10)
    alice, ended = real_pool.member("alice"), list[str | None]()

    def ask() -> None:
        answer = alice.openai().chat.completions.create(**question(200))
        ended.append(answer.choices[0].finish_reason)

    asking = threading.Thread(target=ask)
    asking.start()
    folder = real_pool.folder / "rig" / "worker"
    real_pool.until(partial(answers, folder, 0), "the answer to begin", daemon)
    code, told = leave(real_pool, "rig", "--yes")
    asking.join(60)
    assert (code, ended) == (0, ["length"]), told
    assert "Left potluck. What rig earned stays with bob." in told
    assert daemon.popen.wait(10) == 0
    assert not kept(real_pool, "rig") & set(REMOVED)
    [proof] = (folder / "receipts.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(proof)["state"] == "matched"
    bob, earned = real_pool.members["bob"], real_pool.members["bob"].balance()["balance"]
    assert earned > 0
    assert real_pool.view("rig") == {}
    assert real_pool.ledger_sum() == 0
    [event] = real_pool.admin.api("GET", "/pool/v1/audit?action=worker_left").json()["data"]
    shown = bob.api("GET", f"/pool/v1/workers/{event['subject']}").json()
    assert (shown["state"], shown["earned"]) == ("revoked", earned)

    again = Process.start("start rig", ["worker", "start"], real_pool.folder / "rig")
    assert again.popen.wait(60) == ExitCode.NOT_LOGGED_IN
    real_pool.join("rig", "bob")
    names = [one["name"] for one in bob.api("GET", "/pool/v1/workers").json()]
    assert names == ["rig"], "a new worker, with its old name"


def test_receipts_are_handed_in_first_and_without_the_pool_nothing_is_removed(real_pool: RealPool) -> None:
    """The coordinator dies in mid-answer; the worker cannot leave before it is back, or only by force."""
    homes, alice = {}, real_pool.member("alice")
    for name in ("rig", "attic"):
        daemon = real_pool.add_emulator(name, "bob", tpot_ms=10)
        homes[name] = real_pool.folder / name / "worker"
        asked = {**question(4_000), "stream": True, "potluck": {"workers": [name]}}
        threading.Thread(target=interrupted, args=(alice, asked), daemon=True).start()
        real_pool.until(partial(answers, homes[name], 100), "tokens", daemon)
    assert real_pool.coordinator is not None
    real_pool.coordinator.kill()
    for name, home in homes.items():
        real_pool.until(partial(holds, home), "a receipt that nobody takes", real_pool.workers[name])
    code, told = leave(real_pool, "rig", "--yes")
    assert code == ExitCode.UNREACHABLE, told
    assert "1 receipts could not be handed in" in told
    assert "Nothing was removed" in told
    assert {"membership.json", "receipt.key", "tls.key", "receipts.sqlite3"} <= kept(real_pool, "rig")
    assert not WorkerState.load(homes["rig"]).runs

    code, told = leave(real_pool, "attic", "--yes", "--force")
    assert code == 0, told
    assert "The pool did not take 1 receipts" in told
    assert "potluck workers revoke attic" in told
    assert not kept(real_pool, "attic") & set(REMOVED)

    real_pool.start_coordinator()
    code, told = leave(real_pool, "rig", "--yes")
    assert code == 0, told
    [proof] = (homes["rig"] / "receipts.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(proof)["state"] == "void"
    assert not kept(real_pool, "rig") & set(REMOVED)
    assert {one["name"] for one in real_pool.admin.api("GET", "/pool/v1/workers").json()} == {"attic"}


def test_nobody_leaves_by_mistake(real_pool: RealPool) -> None:
    real_pool.join("rig", "bob")
    before = kept(real_pool, "rig")
    code, told = leave(real_pool, "rig")
    assert code == ExitCode.USAGE
    assert "give --yes if you mean it" in told
    assert kept(real_pool, "rig") == before
    assert leave(real_pool, "rig", "--yes")[0] == 0
    code, told = leave(real_pool, "rig", "--yes")
    assert (code, "has not joined a pool" in told) == (ExitCode.NOT_LOGGED_IN, True)


def test_who_was_shut_out_already_or_lost_its_keys_can_still_leave(real_pool: RealPool) -> None:
    for name in ("rig", "attic"):
        real_pool.join(name, "bob")
    bob = real_pool.members["bob"]
    bob.api("DELETE", f"/pool/v1/workers/{real_pool.view('rig')['id']}").raise_for_status()
    code, told = leave(real_pool, "rig", "--yes")
    assert (code, "The pool was not told" in told) == (0, False)
    (real_pool.folder / "attic" / "worker" / "receipt.key").unlink()
    code, told = leave(real_pool, "attic", "--yes")
    assert (code, "--force" in told) == (ExitCode.NOT_LOGGED_IN, True)
    code, told = leave(real_pool, "attic", "--yes", "--force")
    assert (code, "potluck workers revoke attic" in told) == (0, True)
    assert not kept(real_pool, "attic") & set(REMOVED)


async def test_only_the_workers_own_fresh_signature_lets_it_leave_and_twice_is_once(stand: Stand) -> None:
    identity, enrolled = await _enrolled(stand)
    worker_id, now = enrolled["worker_id"], int(stand.clock.now())

    def signed(by: WorkerIdentity, at: int) -> dict[str, Any]:
        signature = b64encode(by.sign(leave_message(worker_id=worker_id, at=at))).decode()
        return {"worker_id": worker_id, "at": at, "signature": signature}

    good = signed(identity, now)
    for body, status, code in (
        (signed(WorkerIdentity.generate(), now), 401, "invalid_signature"),
        ({**good, "at": now + 1}, 401, "invalid_signature"),
        (signed(identity, now - 310), 400, "stale_request"),
        ({**good, "worker_id": "wrk_nobody"}, 404, "worker_not_found"),
    ):
        response = await stand.http.post(f"{stand.url}/pool/v1/leave", json=body)
        assert (response.status_code, error_of(response)["code"]) == (status, code)
    first = await post(stand, "/pool/v1/leave", good, by="nobody")
    stand.clock.ahead_s += 5
    again = await post(stand, "/pool/v1/leave", signed(identity, now + 5), by="nobody")
    assert first == again
    audit = await stand.ask("GET", "/pool/v1/audit?action=worker_left", by="admin")
    assert len(audit.json()["data"]) == 1
