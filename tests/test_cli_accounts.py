"""The commands and the SDK for sending, granting, inviting and what members may."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures_fake_pool import ADMIN_KEY, KEY, WAIT_S, FakePool, fake_pool
from test_cli import Command, Terminal, nobody, potluck

from potluck import Pool
from potluck.client import ClientFile
from potluck.errors import InvalidRequest, NotFound, PotluckError
from potluck.membership import accept_invite

__all__ = ["fake_pool", "nobody", "potluck"]

COMMANDS = [
    "send",
    "members show",
    "members set",
    "members grant",
    "members freeze",
    "members unfreeze",
    "members close",
    "coordinator invite",
    "coordinator invites",
    "coordinator admin-key",
]


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_help_with_an_example(potluck: Command, path: str) -> None:
    code, out, err = potluck.here(*path.split(), "--help")
    assert (code, err) == (0, "")
    assert f"Example:  potluck {path}" in out


# ---- send


def test_sending_says_what_was_sent_and_what_is_left(potluck: Command, fake_pool: FakePool) -> None:
    """Credits by default, microcredits with --micro; each try has an Idempotency-Key of its own."""
    code, out, err = potluck.here("send", "alice", "1,000.5", "--note", "thanks")
    assert (code, out) == (0, "Sent 1,000.50 credits to alice.\n")
    assert "7.50" in err
    assert potluck.here("send", "alice", "12", "--micro")[1] == "Sent 12 microcredits to alice.\n"
    assert fake_pool.bodies("/pool/v1/transfers") == [
        {"to": "alice", "amount": 1_000_500_000, "note": "thanks"},
        {"to": "alice", "amount": 12},
    ]
    keys = {headers["idempotency-key"] for headers in fake_pool.headers("/pool/v1/transfers")}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("member", "amount", "code"),
    [
        ("alice", "0", 2),
        ("alice", "twelve", 2),
        ("alice", "0.0000001", 2),
        ("missing", "1", 4),
        ("conflict", "1", 5),
        ("poor", "1", 6),
        ("limited", "1", 7),
        ("forbidden", "1", 1),
    ],
)
def test_exit_codes_of_sending(potluck: Command, member: str, amount: str, code: int) -> None:
    found, out, err = potluck.here("send", member, amount, "-o", "json")
    assert (found, out) == (code, "")
    assert json.loads(err)["error"]["exit_code"] == code


def test_an_amount_below_zero_is_not_sent(potluck: Command, fake_pool: FakePool) -> None:
    assert potluck.here("send", "alice", "--", "-5")[0] == 2
    assert potluck.here("send", "alice", "1.5", "--micro")[0] == 2
    assert fake_pool.bodies("/pool/v1/transfers") == []


@pytest.mark.parametrize(
    ("answer", "options", "sent"), [(b"y\n", [], 1), (b"\n", [], 0), (b"", ["--yes"], 1)]
)
def test_at_a_terminal_it_asks_first(
    potluck: Command, fake_pool: FakePool, answer: bytes, options: list[str], sent: int
) -> None:
    """Anything but yes sends nothing; --yes does not ask."""
    import pty

    master, slave = pty.openpty()
    with potluck.process("send", "alice", "2", *options, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        terminal = Terminal(master)
        if not options:
            terminal.until("Send 2.00 credits to alice? [y/N]")
            os.write(master, answer)
        terminal.until("Sent 2.00" if sent else "Nothing was done.")
        assert terminal.comes(None, WAIT_S)
        assert process.wait(WAIT_S) == (0 if sent else 1)
    os.close(master)
    assert len(fake_pool.bodies("/pool/v1/transfers")) == sent


# ---- members


def test_admins_grant_set_freeze_and_close(potluck: Command, fake_pool: FakePool) -> None:
    code, out, err = potluck.here("members", "grant", "alice", "50", "--reason", "docs", "--key", ADMIN_KEY)
    assert (code, out) == (0, "Granted 50.00 credits to alice.\n")
    assert "-50.00" in err
    code, out, _ = potluck.here("members", "set", "alice", "--credit-line", "2.5", "--role", "admin")
    assert code == 0
    assert "2.50" in out
    assert "admin" in out
    assert "frozen: leaked" in potluck.here("members", "freeze", "alice", "--reason", "leaked")[1]
    assert "active" in potluck.here("members", "unfreeze", "alice")[1]
    assert potluck.here("members", "close", "alice", "--reason", "left")[0] == 2, "nobody could be asked"
    assert "closed: left" in potluck.here("members", "close", "alice", "--reason", "left", "--yes")[1]
    assert potluck.here("members", "close", "carol", "--confirm", "carol")[0] == 0
    assert potluck.here("members", "show", "zoë b")[0] == 0
    assert potluck.here("members", "set", "alice")[0] == 2
    assert potluck.here("members", "show", "../me")[0] == 4
    assert potluck.here("members", "set", "conflict", "--credit-line", "1")[0] == 5
    sent = [(method, path, body) for method, path, _, body in fake_pool.requests if "members" in path]
    assert sent[0] == ("PATCH", "/pool/v1/members/alice", {"credit_line": 2_500_000, "role": "admin"})
    assert ("POST", "/pool/v1/members/carol/close", {"confirm": "carol"}) in sent


def test_keys_of_another_member(potluck: Command, fake_pool: FakePool) -> None:
    assert "theirs" in potluck.here("keys", "list", "--member", "bob")[1]
    code, out, err = potluck.here("keys", "create", "again", "--member", "bob")
    assert (code, out) == (0, "sk-potluck-again\n")
    assert "of bob" in err
    assert potluck.here("keys", "revoke", "key_1", "--force")[0] == 0
    assert fake_pool.bodies("/pool/v1/members/bob/keys")[-1] == {"name": "again"}


# ---- invitations


def test_inviting_prints_the_token_and_what_the_friend_runs(potluck: Command, fake_pool: FakePool) -> None:
    options = ["--credit-line", "50", "--expires", "7d", "--note", "for Dave", "--from-pool"]
    code, out, err = potluck.here("coordinator", "invite", *options)
    assert (code, out) == (0, "pli_x\n")
    assert f"potluck login {fake_pool.url} --invite pli_x --name NAME" in err
    assert "the pool's lines" in err
    assert fake_pool.bodies("/pool/v1/invites") == [
        {"credit_line": 50_000_000, "expires_s": 604_800, "note": "for Dave", "from_pool": True}
    ]
    assert fake_pool.headers("/pool/v1/invites")[0]["idempotency-key"]


def test_invitations_are_listed_and_taken_back(potluck: Command, fake_pool: FakePool) -> None:
    assert "open by dave" in potluck.here("coordinator", "invites", "--all")[1]
    assert "inv_1 is taken back" in potluck.here("coordinator", "invites", "--revoke", "inv_1")[1]
    assert potluck.here("coordinator", "invites", "--revoke", "inv_2")[0] == 4
    fake_pool.empty = True
    code, out, err = potluck.here("coordinator", "invites")
    assert (code, out) == (0, "")
    assert "coordinator invite" in err


def test_an_invitation_makes_a_login(nobody: Command, fake_pool: FakePool, tmp_path: Path) -> None:
    """The key is saved and never printed; the token may come from a file."""
    (tmp_path / "token").write_text("pli_good\n")
    code, out, err = nobody.here(
        "login", fake_pool.url, "--invite", f"file:{tmp_path / 'token'}", "--name", "dave"
    )
    assert code == 0, err
    assert "Logged in to kitchen as dave" in out
    assert KEY not in out + err
    assert ClientFile.load().profiles["default"] == {"url": fake_pool.url, "key": KEY}
    assert nobody.here("whoami")[0] == 0
    assert fake_pool.bodies("/pool/v1/invites/accept") == [{"token": "pli_good", "name": "dave"}]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--invite", "pli_good"], 2),
        (["--invite", "pli_used", "--name", "dave"], 5),
        (["--invite", "pli_good", "--name", "dave", "--key", KEY], 2),
        (["--invite", "file:/nowhere", "--name", "dave"], 2),
    ],
)
def test_an_invitation_that_cannot_be_accepted_saves_nothing(
    nobody: Command, fake_pool: FakePool, options: list[str], code: int
) -> None:
    assert nobody.here("login", fake_pool.url, *options)[0] == code
    assert not ClientFile.load().path.exists()


def test_a_key_that_is_saved_is_not_lost_to_an_invitation(nobody: Command, fake_pool: FakePool) -> None:
    """Nothing is accepted then: the token stays good for another profile."""
    assert nobody.here("login", fake_pool.url, "--key", KEY)[0] == 0
    options = ["login", fake_pool.url, "--invite", "pli_good", "--name", "dave"]
    assert nobody.here(*options)[0] == 2
    assert fake_pool.bodies("/pool/v1/invites/accept") == []
    assert nobody.here(*options, "--profile", "second")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["send", "alice", "1"],
        ["members", "set", "alice", "--credit-line", "1"],
        ["members", "grant", "alice", "1", "--reason", "x"],
        ["members", "freeze", "alice", "--reason", "x"],
        ["coordinator", "invite"],
        ["coordinator", "invites"],
    ],
)
def test_json_and_nothing_else(potluck: Command, arguments: list[str]) -> None:
    code, out, err = potluck.here(*arguments, "-o", "json")
    assert (code, err) == (0, "")
    json.loads(out)


# ---- the SDK


def test_a_try_that_is_made_again_carries_the_same_idempotency_key(
    potluck: Command, fake_pool: FakePool
) -> None:
    """So that a lost answer never pays twice."""
    fake_pool.loading_left = 1
    with Pool(fake_pool.url, KEY, retries_max=1, sleep=lambda _: None) as pool:
        assert pool.send("shaky", 5).amount == 5
    first, second = fake_pool.headers("/pool/v1/transfers")
    assert first["idempotency-key"] == second["idempotency-key"]


def test_a_key_of_ones_own_is_passed_on(potluck: Command, fake_pool: FakePool) -> None:
    calls: list[Callable[[Pool], Any]] = [
        lambda pool: pool.send("alice", 5, idempotency_key="mine"),
        lambda pool: pool.grant("alice", 5, "x", idempotency_key="mine"),
        lambda pool: pool.invite(idempotency_key="mine"),
    ]
    with Pool(fake_pool.url, KEY) as pool:
        for call in calls:
            call(pool)
    assert [headers["idempotency-key"] for _, _, headers, _ in fake_pool.requests] == ["mine"] * 3


def test_what_names_nobody_is_not_sent(potluck: Command, fake_pool: FakePool) -> None:
    with Pool(fake_pool.url, KEY) as pool:
        for wrong in ("", ".", "..", "a/b", "x" * 129, "a\nb"):
            with pytest.raises(NotFound):
                pool.member(wrong)
    assert fake_pool.requests == []


def test_accepting_needs_no_key(potluck: Command, fake_pool: FakePool) -> None:
    made = accept_invite(fake_pool.url, "pli_good", "dave")
    assert (made.name, made.key, made.credit_line) == ("dave", KEY, 10**8)
    assert KEY not in repr(made)
    assert "authorization" not in fake_pool.headers("/pool/v1/invites/accept")[0]
    with pytest.raises(InvalidRequest, match="used already") as refused:
        accept_invite(fake_pool.url, "pli_bad", "dave")
    assert isinstance(refused.value, PotluckError)


def test_sending_loads_none_of_what_is_heavy() -> None:
    heavy = "{'torch', 'grpc', 'fastapi', 'coordinator', 'sqlalchemy'}"
    code = (
        "import sys; from potluck.cli.main import run; run(['send', '--help']);"
        f" assert not {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
