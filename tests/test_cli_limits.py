"""Limits and scopes on the command line and in the SDK, against a real HTTP server."""

import json

import pytest
from fixtures_fake_pool import ADMIN_KEY, FakePool, fake_pool
from test_cli import Command, potluck

from potluck import Pool
from potluck.errors import NotFound
from potluck.results import Limits

__all__ = ["fake_pool", "potluck"]


def test_limits_are_shown_with_what_is_used(potluck: Command) -> None:
    """For people in credits and with the word for no limit; for machines as they came."""
    code, out, _ = potluck.here("limits")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["member", "carol", "requests", "per", "minute", "3", "600", "-", "pool"]
    assert lines[2][2:] == ["credits", "per", "day", "1.25", "5.00", "2026-11-24T00:00:00Z", "key"]
    assert "no limit" in out
    code, out, _ = potluck.here("limits", "-o", "json")
    assert [use["used"] for use in json.loads(out)] == [3, 1_250_000, 0]


def test_a_key_is_made_with_scopes_models_and_limits(potluck: Command, fake_pool: FakePool) -> None:
    """Credits become microcredits; what is not given is not sent."""
    code, out, err = potluck.here(
        *("keys", "create", "ci", "--scope", "inference", "--scope", "read", "--model", "small"),
        *("--credits-per-day", "1.5", "--credits-per-month", "20", "--requests-per-minute", "10"),
        *("--tokens-per-minute", "2000", "--concurrent", "2", "--expires", "30d"),
    )
    assert (code, out) == (0, "sk-potluck-new\n")
    assert "It may: inference, read; models: small; limits: " in err
    limits = {
        "requests_per_minute": 10,
        "tokens_per_minute": 2_000,
        "concurrent_jobs": 2,
        "credits_per_day": 1_500_000,
        "credits_per_month": 20_000_000,
    }
    assert fake_pool.bodies("/pool/v1/keys") == [
        {
            "name": "ci",
            "expires_s": 30 * 86_400,
            "scopes": ["inference", "read"],
            "models": ["small"],
            "limits": limits,
        }
    ]
    code, _, err = potluck.here("keys", "create", "plain")
    assert code == 0
    assert "all you may" in err
    assert fake_pool.bodies("/pool/v1/keys")[1] == {"name": "plain"}


def test_keys_are_listed_with_what_they_may(potluck: Command) -> None:
    code, out, _ = potluck.here("keys", "list")
    assert code == 0
    assert "inference read" in out
    assert "2 jobs at once, 5.00 credits per day" in out


@pytest.mark.parametrize(
    "option",
    [
        ("--credits-per-day", "0"),
        ("--tokens-per-minute", "0"),
        ("--credits-per-day", "much"),
        ("--credits-per-month", "-1"),
        ("--concurrent", "0"),
        ("--scope", "everything"),
    ],
)
def test_a_key_without_sense_is_refused_before_it_is_asked_for(
    potluck: Command, fake_pool: FakePool, option: tuple[str, str]
) -> None:
    """0 for nothing and 0 for no limit are two things: for a key it is neither."""
    code, out, err = potluck.here("keys", "create", "ci", *option)
    assert (code, out) == (2, "")
    assert option[0] in err or option[1] in err
    assert fake_pool.bodies("/pool/v1/keys") == []


def test_an_admin_sets_shows_and_clears_a_members_limits(potluck: Command, fake_pool: FakePool) -> None:
    """What is not given stays as it was; --clear begins with none."""
    path, admin = "/pool/v1/members/carol/limits", ("--key", ADMIN_KEY)
    assert potluck.here("members", "limit", "carol", "--credits-per-day", "5", *admin)[0] == 0
    code, out, _ = potluck.here("members", "limit", "carol", "--tokens-per-minute", "0", *admin)
    assert code == 0
    assert "unlimited tokens per minute, 5.00 credits per day" in out
    assert fake_pool.limits == {"credits_per_day": 5_000_000, "tokens_per_minute": 0}
    asked = len(fake_pool.bodies(path))
    code, out, _ = potluck.here("members", "limit", "carol", "-o", "json", *admin)
    assert json.loads(out)["effective"]["requests_per_minute"] == 600
    assert len(fake_pool.bodies(path)) == asked + 1  # looked, and set nothing
    code, out, _ = potluck.here("members", "limit", "carol", "--clear", "--concurrent", "3", *admin)
    assert code == 0
    assert fake_pool.limits == {"concurrent_jobs": 3}
    assert potluck.here("members", "limit", "carol", "--clear", *admin)[0] == 0
    assert fake_pool.limits == {}


def test_members_limits_are_for_admins_and_for_members_that_exist(potluck: Command) -> None:
    code, _, err = potluck.here("members", "limit", "carol")
    assert code == 1
    assert "admin" in err
    assert potluck.here("members", "limit", "nobody", "--key", ADMIN_KEY)[0] == 4
    assert potluck.here("members", "limit", "..", "--key", ADMIN_KEY)[0] == 4


def test_the_sdk_sets_and_reads_limits(fake_pool: FakePool) -> None:
    with Pool(fake_pool.url, ADMIN_KEY) as pool:
        made = pool.create_key("ci", scopes=["read"], models=["small"], limits=Limits(concurrent_jobs=1))
        assert (made.scopes, made.models, made.limits) == (("read",), ("small",), Limits(concurrent_jobs=1))
        assert pool.keys()[0].limits.credits_per_day == 5_000_000
        assert [use.limit for use in pool.limits() if use.allowed is None] == ["tokens_per_minute"]
        assert pool.set_member_limits("carol", Limits(credits_per_month=7)).limits.credits_per_month == 7
        both = Limits(requests_per_minute=600, credits_per_month=7)
        assert pool.member_limits("carol").effective == both
        with pytest.raises(NotFound):
            pool.member_limits("nobody")
    assert fake_pool.bodies("/pool/v1/keys")[0]["scopes"] == ["read"]
