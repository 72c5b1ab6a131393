"""`potluck workers pause|resume|drain|rename|revoke` against a real pool with a real worker, as its owner types it."""

import json
import os
import subprocess

import pytest
from fixtures_pool import COMMAND, Member, RealPool

from potluck.cli.workers import models_line
from potluck.results import Worker, WorkerModel

pytestmark = pytest.mark.processes


def potluck(member: Member, *arguments: str) -> tuple[int, str, str]:
    """The exit code, what it printed, and what it said beside that."""
    environment = {
        **os.environ,
        "POTLUCK_HOME": str(member.pool.folder / "laptop"),
        "POTLUCK_URL": member.pool.url,
        "POTLUCK_KEY": member.key,
    }
    done = subprocess.run(
        [*COMMAND, "workers", *arguments],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("state", "why", "model_state", "model_why", "expected"),
    [
        ("sharing", None, "ready", None, "tiny (torch, ready)"),
        ("sharing", None, "present", "no room", "tiny (torch, present, no room)"),
        ("paused", "its owner paused it", "present", "paused: its owner paused it", "tiny (torch, present)"),
        ("away", "not connected", "ready", None, "tiny (torch)"),
        ("away", "not connected", "failed", "no room", "tiny (torch)"),
    ],
)
def test_a_row_says_a_reason_once_and_nothing_old(
    state: str, why: str | None, model_state: str, model_why: str | None, expected: str
) -> None:
    model = WorkerModel(name="tiny", engine="torch", state=model_state, why=model_why)
    worker = Worker(id="wrk_1", name="rig", member="bob", state=state, why=why, models=(model,))
    assert models_line(worker) == expected


def test_an_owner_has_a_real_worker_in_hand_from_afar(real_pool: RealPool) -> None:
    process = real_pool.add_emulator("rig", "bob")
    bob, alice = real_pool.member("bob"), real_pool.member("alice")
    assert potluck(bob, "pause", "rig", "--for", "2h")[1] == (
        "rig is asked to pause: what runs goes on elsewhere.\n"
    )
    real_pool.until(lambda: real_pool.view("rig")["state"] == "paused", "it to pause", process)
    assert "paused: its owner paused it from afar" in potluck(bob)[1]
    code, out, err = potluck(real_pool.admin, "resume", "rig")
    assert (code, out) == (5, "")
    assert "only its owner may take that back" in err
    assert "Nothing from afar keeps rig from sharing" in potluck(bob, "resume", "rig")[1]
    real_pool.until(lambda: real_pool.ready("rig"), "it to share again", process)
    assert potluck(bob, "rename", "rig", "attic")[1] == "rig is called attic now.\n"
    code, _, err = potluck(alice, "drain", "attic")
    assert code != 0
    assert "belongs to another member" in err
    assert potluck(bob, "drain", "rig")[0] == 4, "nobody is called so any more"
    assert potluck(bob, "drain", "attic")[1] == "attic stops.\n"
    assert process.popen.wait(60) == 0, "".join(process.lines[-30:])
    real_pool.until(lambda: real_pool.view("attic")["state"] == "away", "it to be gone")
    assert potluck(bob, "drain", "attic")[0] == 5
    assert "it is away and hears of it when it comes" in potluck(bob, "pause", "attic")[1]
    assert potluck(bob, "revoke", "attic")[0] == 2, "nobody could be asked"
    shown = json.loads(potluck(bob, "revoke", "attic", "-o", "json", "--yes")[1])
    assert (shown["name"], shown["revoked"]) == ("attic", True)
    assert json.loads(potluck(bob, "-o", "json")[1]) == []


def test_of_two_workers_of_one_name_ones_own_is_meant_and_others_by_their_ids(real_pool: RealPool) -> None:
    for home, owner in (("one", "alice"), ("two", "bob")):
        token = real_pool.member(owner).api("POST", "/pool/v1/join-tokens", json={}).json()["token"]
        arguments = ["worker", "join", real_pool.url, "--token", token, "--name", "rig"]
        environment = {**os.environ, "POTLUCK_HOME": str(real_pool.folder / home)}
        subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, check=True, timeout=60)
    alice, bob = real_pool.member("alice"), real_pool.member("bob")
    assert potluck(alice, "rename", "rig", "mine")[1] == "rig is called mine now.\n"
    assert potluck(alice, "rename", "mine", "rig")[0] == 0
    code, _, err = potluck(real_pool.admin, "pause", "rig")
    assert code == 2
    assert "Several workers are called 'rig': give the id" in err
    mine = next(w for w in json.loads(potluck(bob, "-o", "json")[1]) if w["member"] == "bob")
    assert potluck(real_pool.admin, "pause", mine["id"], "--why", "a test")[0] == 0
    paused = {w["member"]: w["pause"] for w in json.loads(potluck(bob, "-o", "json")[1])}
    assert paused["alice"] is None
    assert paused["bob"]["why"] == "the admin admin paused it: a test"
