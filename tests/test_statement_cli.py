"""`potluck statement` and the SDK's statement: pages, files, totals, and what they print for people."""

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from fixtures_fake_pool import ADMIN_KEY, KEY, FakePool, fake_pool
from test_cli import Command, potluck

from potluck import Pool
from potluck.errors import InvalidRequest, Unreachable

__all__ = ["fake_pool", "potluck"]


@pytest.fixture
def pool(fake_pool: FakePool) -> Pool:
    return Pool(fake_pool.url, KEY)


def test_the_sdk_goes_from_page_to_page(fake_pool: FakePool, pool: Pool) -> None:
    """As an iterator: each line once, in order, and no page before it is needed."""
    fake_pool.movements = 250
    with pool:
        lines = pool.statement()
        assert next(lines).number == 250
        assert len(fake_pool.requests) == 1
        assert [line.number for line in lines] == list(range(249, 0, -1))
        assert len(fake_pool.requests) == 3
        assert [line.number for line in pool.statement(before=3)] == [2, 1]
        assert list(pool.statement(code="grant")) == []


def test_the_sdk_takes_days_and_times(fake_pool: FakePool, pool: Pool) -> None:
    """As text, dates or datetimes; what the pool refuses is its sentence."""
    with pool:
        list(pool.statement(since=date(2026, 11, 1), until=datetime(2026, 11, 26, 9, 30, tzinfo=UTC)))
        [total] = pool.totals("day", since="2026-11-01")
        with pytest.raises(InvalidRequest, match="a day or a time is needed"):
            list(pool.statement(since="nonsense"))
    assert (total.period, total.given - total.taken) == ("2026-11-26", total.contribution)
    assert fake_pool.queries("/pool/v1/statement")[0] == {
        "from": "2026-11-01",
        "to": "2026-11-26T09:30:00+00:00",
        "limit": "100",
    }


def test_lines_are_aligned_and_whole(potluck: Command) -> None:
    """Amounts line up at the point; the words are not cut, whatever a table cuts elsewhere."""
    code, out, err = potluck.here("statement")
    head, *lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 3)
    assert head.split() == ["NUMBER", "WHEN", "(UTC)", "AMOUNT", "BALANCE", "WHAT"]
    assert {line.index("-1.500000") for line in lines} == {head.index("AMOUNT") - 3}
    assert lines[0].endswith("number 3")
    assert "-4.500000" in lines[0]
    _, micro, _ = potluck.here("statement", "--micro")
    assert "-4500000" in micro
    _, held, _ = potluck.here("statement", "--holds")
    assert "RESERVED" in held.splitlines()[0]
    assert "2.000000" in held


def test_a_limit_says_how_to_go_on(potluck: Command, fake_pool: FakePool) -> None:
    fake_pool.movements = 300
    _, out, err = potluck.here("statement", "--limit", "2")
    assert len(out.splitlines()) == 3
    assert "--before 299" in err
    _, out, err = potluck.here("statement", "--limit", "250", "--before", "299", "-o", "jsonl")
    assert [json.loads(line)["number"] for line in out.splitlines()] == list(range(298, 48, -1))
    assert err == ""


def test_machines_get_json(potluck: Command, fake_pool: FakePool) -> None:
    """The whole as one object, or line by line; integers, and nothing else on stdout."""
    _, out, _ = potluck.here("statement", "-o", "json")
    body = json.loads(out)
    assert (len(body["data"]), body["has_more"]) == (3, False)
    assert body["data"][0]["amount"] == -1_500_000
    _, out, _ = potluck.here("statement", "--totals", "month", "-o", "json")
    assert json.loads(out)[0]["period"] == "2026-11"
    fake_pool.movements = 0
    assert json.loads(potluck.here("statement", "-o", "json")[1]) == {"data": [], "has_more": False}


def test_an_empty_statement_says_what_to_do(potluck: Command, fake_pool: FakePool) -> None:
    """New members read how credits move; a filter that fits nothing says so."""
    fake_pool.movements = 0
    for arguments in (["statement"], ["statement", "--totals", "day"]):
        code, out, err = potluck.here(*arguments)
        assert (code, out) == (0, "")
        assert err.startswith("Nothing has moved yet. ")
    _, _, err = potluck.here("statement", "--code", "grant")
    assert err.startswith("Nothing has moved that fits. ")


def test_totals_are_a_table(potluck: Command) -> None:
    _, out, _ = potluck.here("statement", "--totals", "day", "--from", "2026-11-01")
    head, line = out.splitlines()
    assert head.startswith("PERIOD")
    assert "FEES" not in head
    assert line.split()[:5] == ["2026-11-26", "5.000000", "0.100000", "2.000000", "3.000000"]
    assert "12,345" in line


def test_a_csv_file_is_written_whole_or_not_at_all(
    potluck: Command, fake_pool: FakePool, tmp_path: Path
) -> None:
    target = tmp_path / "moves.csv"
    code, out, err = potluck.here("statement", "--csv", str(target), "--holds")
    assert (code, out) == (0, "")
    assert "microcredits" in err
    assert target.read_bytes().startswith(b"number,amount\r\n3,-4500000\r\n")
    assert fake_pool.queries("/pool/v1/statement") == [{"holds": "true", "format": "csv"}]
    code, _, err = potluck.here("statement", "--csv", str(target), "--from", "nonsense")
    assert code == 5
    assert target.read_bytes().startswith(b"number,amount\r\n3")
    code, _, err = potluck.here("statement", "--csv", str(tmp_path / "none" / "x.csv"))
    assert code == 1
    assert "cannot be written" in err
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ""] == ["moves.csv"]


def test_csv_to_stdout_is_the_file_and_nothing_else(potluck: Command) -> None:
    with potluck.process("statement", "--csv", "-") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[0] == "number,amount"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--totals", "day", "--csv", "-"],
        ["--totals", "day", "--code", "grant"],
        ["--csv", "-", "--limit", "3"],
        ["--code", "theft"],
        ["--limit", "0"],
    ],
)
def test_options_that_make_no_sense_are_refused(potluck: Command, arguments: list[str]) -> None:
    code, out, err = potluck.here("statement", *arguments)
    assert (code, out) == (2, "")
    assert err


def test_the_commons_is_asked_for_by_name(potluck: Command, fake_pool: FakePool) -> None:
    potluck.here("statement", "--account", "commons", "--key", ADMIN_KEY)
    assert fake_pool.queries("/pool/v1/statement") == [{"account": "commons", "limit": "50"}]


def test_the_balance_explains_what_is_held(potluck: Command, fake_pool: FakePool) -> None:
    """Where the pool gives the rule that frees it; nothing is added where nothing is held."""
    _, out, _ = potluck.here("balance")
    assert "earned, not yet free\n" in out
    fake_pool.held_why = "6 more of 10 jobs without a dispute"
    _, out, _ = potluck.here("balance")
    assert "3.20 earned, not yet free: 6 more of 10 jobs without a dispute" in out


def test_a_file_that_breaks_off_is_an_error(pool: Pool) -> None:
    """The bytes are taken as they come; an address that is gone is named."""
    with pool, pool.statement_csv({"code": "transfer"}) as pieces:
        assert b"".join(pieces).startswith(b"number,amount")
    with (
        Pool("http://127.0.0.1:9", KEY, retries_max=0) as gone,
        pytest.raises(Unreachable),
        gone.statement_csv({}),
    ):
        pass
