"""What a starting coordinator reads of recent work is what the running one had counted."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from fixtures_store import World, world
from sqlalchemy import text

from coordinator.clock import rfc3339
from coordinator.core import entries
from coordinator.core.jobs import AccountId
from coordinator.lately import line_of, recall
from coordinator.settings import Settings

pytestmark = pytest.mark.usefixtures("on_both")

DAY_S = 86_400.0
NOON = datetime(2027, 1, 15, 12, tzinfo=UTC).timestamp()
HALF_LIFE_S = 10 * DAY_S


def settings(folder: Path, **more: float) -> Settings:
    return Settings(home=folder, fairness_half_life_s=HALF_LIFE_S, **more)  # type: ignore[arg-type]  # numbers all


async def worked(pool: World, payer: int, worker: int, charge: int, days: float) -> None:
    """One member's job, done by another's worker so many days before noon, on disk."""
    pool.at = rfc3339(NOON - days * DAY_S)
    job = pool.job(payer, hold=1_000_000)
    await pool.store.commit(pool.held(job))
    _, batch = pool.closed(pool.assigned(job, worker), charge)
    await pool.store.commit(batch)


async def lend(pool: World, lender: AccountId, to: AccountId) -> None:
    async with pool.store.writing() as connection:
        said = text("UPDATE accounts SET lender_id = :lender, lent = 5 WHERE id = :to")
        await connection.execute(said, {"lender": lender, "to": to})


async def test_contribution_is_read_back_from_the_ledger(tmp_path: Path) -> None:
    """By day, faded, of both sides; what is older than ten half-lives is not read, other entries do not count."""
    async with world(tmp_path) as pool:
        pool.at = rfc3339(NOON - 200 * DAY_S)
        first, second, third = (member.account for member in pool.members)
        await pool.store.commit(pool.batch([pool.record(entries.transfer("gift", first, third, 77))], []))
        await worked(pool, 2, 0, 900_000, days=150)
        await worked(pool, 2, 0, 100_000, days=10)
        await worked(pool, 2, 1, 50_000, days=0)
        line = line_of(settings(tmp_path))
        await recall(line, pool.store, NOON)
        assert line.given.of(first) == pytest.approx(98_000 / 2)
        assert line.given.of(second) == pytest.approx(49_000)
        assert line.given.of(third) == pytest.approx(-100_000 / 2 - 50_000)


async def test_what_is_read_is_what_was_counted_as_it_happened(tmp_path: Path) -> None:
    """The same entries, once through the core and once through SQL, lenders and all."""
    async with world(tmp_path) as pool:
        first, second, third = (member.account for member in pool.members)
        live = line_of(settings(tmp_path)).given
        live.lend(first, third, 5)
        await lend(pool, first, third)
        for payer, worker, charge, days in ((2, 0, 500_000, 3), (2, 1, 300_000, 2), (0, 1, 200_000, 1)):
            await worked(pool, payer, worker, charge, days)
            live.now = NOON - days * DAY_S
            live.take((await pool.store.recorded(after=pool.number - 1))[0].entry)
        live.now = NOON
        line = line_of(settings(tmp_path))
        await recall(line, pool.store, NOON)
        for account in (first, second, third):
            assert line.given.of(account) == pytest.approx(live.of(account))
        assert line.given.flow_of(third) == first
        assert line.given.of(first) < 0, "serving a relative counted for nothing"


async def test_an_empty_ledger_has_nothing_to_tell(tmp_path: Path) -> None:
    async with world(tmp_path) as pool:
        line = line_of(settings(tmp_path))
        await recall(line, pool.store, NOON)
        assert {line.given.of(member.account) for member in pool.members} == {0.0}


def test_the_rule_has_the_operators_numbers(tmp_path: Path) -> None:
    said = {
        "fairness_guaranteed_permille": 300,
        "fairness_proven": 7,
        "fairness_interactive_permille": 50,
        "fairness_batch_permille": 60,
        "fairness_finetune_permille": 70,
        "fairness_aged_s": 8,
        "fairness_batch_aged_s": 9,
        "default_credit_line": 123,
    }
    line = line_of(settings(tmp_path, **said))
    assert (line.given.half_life_s, line.given.proven) == (HALF_LIFE_S, 7)
    rule = line.rule
    assert (rule.guaranteed_permille, rule.debt_full) == (300, 123)
    assert (rule.reserved_permille, rule.aged_s) == ((50, 60, 70), (8, 9, 9))
