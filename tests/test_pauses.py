"""Pauses from afar: who may ask and take back, what survives restarts, and that the owner at the machine goes first.

The rules as pure functions, the routes over a real pool, the worker's side with a turned clock, and all of it
with a real coordinator and a real daemon.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fixtures_api import Stand, error_of
from fixtures_pool import COMMAND, RealPool
from hypothesis import given
from hypothesis import strategies as st
from test_worker_owner import Turned

from coordinator.core.jobs import MemberId
from coordinator.core.pauses import AskedPause, refusal, words
from potluck.v1 import session_pb2
from worker import wire
from worker.asked import FILE
from worker.asked import AskedPause as HeardPause
from worker.policy import Rules
from worker.wish import Wish

ALICE, ROOT = MemberId("mem_alice"), MemberId("mem_root")


# --- who may


def asked(*, by_owner: bool, until: float | None = None, why: str = "") -> AskedPause:
    return AskedPause(number=7, member=ALICE if by_owner else ROOT, by_owner=by_owner, until=until, why=why)


@given(by_owner=st.booleans() | st.none(), owner=st.booleans())
def test_only_the_owner_stands_above_what_the_owner_paused(by_owner: bool | None, owner: bool) -> None:
    in_force = None if by_owner is None else asked(by_owner=by_owner)
    assert bool(refusal(in_force, owner=owner)) == (by_owner is True and not owner)


def test_a_pause_says_who_asked_and_why() -> None:
    assert words(asked(by_owner=True), "alice") == "its owner paused it from afar"
    assert words(asked(by_owner=False, why="too hot"), "root") == "the admin root paused it: too hot"


@given(until=st.none() | st.floats(0, 1e9), now=st.floats(0, 1e9))
def test_a_pause_is_over_from_its_end_on(until: float | None, now: float) -> None:
    assert asked(by_owner=True, until=until).over(now) == (until is not None and now >= until)


# --- the routes


async def act(stand: Stand, what: str, by: str, **body: Any) -> Any:
    answer = await stand.ask("POST", f"/pool/v1/workers/{stand.worker}/{what}", by=by, json=body)
    answer.raise_for_status()
    return answer.json()


async def refused(stand: Stand, method: str, what: str, by: str, **body: Any) -> tuple[int, str]:
    answer = await stand.ask(method, f"/pool/v1/workers/{stand.worker}{what}", by=by, json=body)
    return answer.status_code, error_of(answer)["code"]


async def test_owner_and_admin_pause_and_each_takes_back_what_they_may(stand: Stand) -> None:
    assert await refused(stand, "POST", "/pause", "alice") == (403, "not_your_worker")
    body = await act(stand, "pause", "admin", why="it is needed")
    assert body["pause"]["why"] == "the admin admin paused it: it is needed"
    assert (await act(stand, "resume", "bob"))["pause"] is None, "the owner may take any back"
    mine = (await act(stand, "pause", "bob", for_s=3_600))["pause"]
    assert (mine["by"], mine["owner"]) == ("bob", True)
    for what in ("/resume", "/pause"):
        assert await refused(stand, "POST", what, "admin") == (409, "paused_by_owner")
    assert stand.context.pool.pauses.of(stand.worker) is not None
    await act(stand, "resume", "bob")
    await act(stand, "pause", "admin")
    assert (await act(stand, "resume", "admin"))["pause"] is None


async def test_whose_account_is_frozen_has_the_own_machine_in_hand_all_the_same(stand: Stand) -> None:
    path = f"/pool/v1/members/{stand.members['bob'].id}/freeze"
    (await stand.ask("POST", path, by="admin", json={"reason": "a stolen key"})).raise_for_status()
    assert (await act(stand, "pause", "bob"))["pause"]["owner"]
    assert (await act(stand, "resume", "bob"))["pause"] is None


async def test_the_worker_is_told_each_time_and_again_when_it_comes_back(stand: Stand) -> None:
    pauses = stand.context.pool.pauses
    await act(stand, "pause", "bob", for_s=60, why="a game\nnow")
    message = pauses.message(stand.worker)
    assert message.why == "its owner paused it from afar: a game now"
    assert message.until_ms > message.number > 0
    assert await stand.context.store.asked_pauses() == {stand.worker: pauses.of(stand.worker)}
    await pauses.recall()
    assert pauses.message(stand.worker) == message, "after a restart of the coordinator, too"
    await pauses.lifted(stand.worker, message.number + 1)
    assert pauses.of(stand.worker) is not None, "another one than the owner took back"
    await pauses.lifted(stand.worker, message.number)
    assert (pauses.message(stand.worker).number, await stand.context.store.asked_pauses()) == (0, {})


async def test_a_worker_is_renamed_by_its_owner_alone(stand: Stand) -> None:
    path = f"/pool/v1/workers/{stand.worker}"
    answer = await stand.ask("PATCH", path, by="bob", json={"name": "attic"})
    assert answer.json()["name"] == "attic"
    listed = (await stand.ask("GET", "/pool/v1/workers")).json()
    assert [worker["name"] for worker in listed] == ["attic"]
    for by in ("alice", "admin"):
        assert await refused(stand, "PATCH", "", by, name="mine") == (403, "not_your_worker")
    assert await refused(stand, "PATCH", "", "bob", name="a\nb") == (400, "invalid_value")


async def test_who_is_away_cannot_be_drained_and_who_was_shut_out_is_left_alone(stand: Stand) -> None:
    stand.context.pool.sessions.streams.clear()
    assert await refused(stand, "POST", "/drain", "bob") == (409, "worker_away")
    await act(stand, "pause", "bob")
    (await stand.ask("DELETE", f"/pool/v1/workers/{stand.worker}", by="bob")).raise_for_status()
    for what in ("/pause", "/resume", "/drain"):
        assert await refused(stand, "POST", what, "bob") == (409, "worker_revoked")


async def test_each_act_leaves_its_word_in_the_audit_log(stand: Stand) -> None:
    await act(stand, "pause", "bob", why="a game")
    await act(stand, "resume", "bob")
    await act(stand, "drain", "bob")
    (
        await stand.ask("PATCH", f"/pool/v1/workers/{stand.worker}", by="bob", json={"name": "x"})
    ).raise_for_status()
    found = (await stand.ask("GET", f"/pool/v1/audit?subject={stand.worker}", by="admin")).json()["data"]
    assert [(event["action"], event["by"]["name"]) for event in found] == [
        (f"worker_{word}", "bob") for word in ("renamed", "drained", "resumed", "paused")
    ]
    assert found[-1]["details"] == {"name": "rig", "why": "a game"}


# --- the worker's side


def from_afar(number: int, until: float | None = None) -> HeardPause:
    until_ms = 0 if until is None else int(until * 1_000)
    return wire.asked_from(
        session_pb2.Pause(number=number, until_ms=until_ms, why="its owner paused it from afar")
    )


async def test_the_owner_at_the_machine_takes_back_what_came_before_and_no_more(tmp_path: Path) -> None:
    turned = Turned(tmp_path, Rules(), 1_000.0)
    await turned.owner.begin()
    Wish(word="share", given_at=999.0).save(tmp_path)
    turned.owner.ask(from_afar(1))
    assert (turned.owner.verdict.sharing, turned.owner.verdict.why) == (
        False,
        "its owner paused it from afar",
    )
    assert turned.owner.lifted == 0, "a word from before the pause is no answer to it"
    Wish(word="share", given_at=1_001.0).save(tmp_path)
    assert turned.at(1_001.0)
    assert turned.owner.lifted == 1
    turned.owner.ask(from_afar(1))
    assert turned.owner.verdict.sharing, "the same one again was taken back"
    Wish(word="pause", until=1_001.5, given_at=1_001.2).save(tmp_path)
    assert not turned.at(1_001.2)
    assert turned.at(1_001.5), "and stays so, whatever the owner says afterwards"
    turned.now = 1_002.0
    turned.owner.ask(from_afar(2))
    assert not turned.at(1_002.0)
    turned.owner.ask(from_afar(0))
    assert turned.at(1_002.0)


async def test_what_was_paused_at_the_machine_nobody_resumes_from_afar(tmp_path: Path) -> None:
    turned = Turned(tmp_path, Rules(), 1_000.0)
    await turned.owner.begin()
    turned.owner.ask(from_afar(1))
    Wish(word="pause", given_at=1_000.0).save(tmp_path)
    assert not turned.at(1_001.0)
    turned.owner.ask(from_afar(0))
    assert (turned.at(1_002.0), turned.owner.verdict.why) == (False, "its owner paused it")


async def test_a_pause_from_afar_survives_a_new_daemon_and_ends_by_itself(tmp_path: Path) -> None:
    first = Turned(tmp_path, Rules(), 1_000.0)
    await first.owner.begin()
    first.owner.ask(from_afar(1, until=1_060.0))
    second = Turned(tmp_path, Rules(), 1_001.0)
    await second.owner.begin()
    assert (second.owner.verdict.sharing, second.owner.verdict.next_change) == (False, 1_060.0)
    assert [second.at(1_059.0), second.at(1_060.0)] == [False, True]
    (tmp_path / FILE).write_bytes(b"{")
    assert HeardPause.load(tmp_path) == HeardPause(), "what cannot be read the pool says again"


# --- all of it


@pytest.mark.processes
def test_a_real_worker_pauses_resumes_and_drains_when_asked_from_afar(real_pool: RealPool) -> None:
    """Over a restart of either side; at last the owner's own word on the machine goes first."""
    process = real_pool.add_emulator("rig", "bob")
    bob, admin, alice = real_pool.member("bob"), real_pool.admin, real_pool.member("alice")
    path = f"/pool/v1/workers/{real_pool.view('rig')['id']}"

    def state() -> tuple[str, str]:
        view = real_pool.view("rig")
        return view["state"], view["why"]

    def on_the_machine(word: str) -> str:
        arguments = [*COMMAND, "worker", word]
        environment = {**os.environ, "POTLUCK_HOME": str(real_pool.folder / "rig")}
        done = subprocess.run(
            arguments, env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout

    bob.api("POST", f"{path}/pause", json={}).raise_for_status()
    from_afar = ("paused", "its owner paused it from afar")
    real_pool.until(lambda: state() == from_afar, "the pause to be heard", process)
    real_pool.until(lambda: real_pool.view("rig")["models"][0]["state"] == "present", "its memory", process)
    assert admin.api("POST", f"{path}/resume", json={}).status_code == 409

    assert process.stop() == 0
    process = real_pool.start_worker("rig", ready=False)
    real_pool.until(lambda: state() == from_afar, "a new daemon to be paused", process)
    assert real_pool.coordinator is not None
    real_pool.coordinator.stop()
    real_pool.start_coordinator()
    real_pool.until(lambda: state() == from_afar, "the pool to come back", process)

    bob.api("POST", f"{path}/resume", json={}).raise_for_status()
    real_pool.until(lambda: real_pool.ready("rig"), "it to share again", process)
    answer = alice.openai().chat.completions.create(
        model="emulator-small", messages=[{"role": "user", "content": "a b"}]
    )
    assert answer.choices[0].message.content

    admin.api("POST", f"{path}/pause", json={"why": "a test"}).raise_for_status()
    real_pool.until(lambda: state() == ("paused", "the admin admin paused it: a test"), "its pause", process)
    assert "The pause is over" in on_the_machine("resume")
    real_pool.until(lambda: real_pool.view("rig")["pause"] is None, "the pool to hear that", process)
    real_pool.until(lambda: real_pool.ready("rig"), "it to share again", process)

    on_the_machine("pause")
    real_pool.until(lambda: state() == ("paused", "its owner paused it"), "the owner's own word", process)
    real_pool.until(lambda: "paused" in on_the_machine("status"), "the machine to say so", process)
    bob.api("POST", f"{path}/resume", json={}).raise_for_status()
    assert state() == ("paused", "its owner paused it")
    assert "paused" in on_the_machine("status")
    on_the_machine("resume")
    real_pool.until(lambda: real_pool.ready("rig"), "it to share again", process)

    admin.api("POST", f"{path}/drain", json={}).raise_for_status()
    assert process.popen.wait(60) == 0, "".join(process.lines[-30:])
    real_pool.until(lambda: state()[0] == "away", "it to be gone")
