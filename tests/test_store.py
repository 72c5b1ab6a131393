"""The tick's commit on real databases, SQLite and PostgreSQL: whole or not at all, once, and the same after a restart."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures_store import AT, NOW, OPENED, World, url_in, world
from sqlalchemy.exc import DBAPIError

from coordinator.core import entries, ledger
from coordinator.core.jobs import AccountId, JobEvent, JobId, JobState, move
from coordinator.core.receipts import ReceiptState
from coordinator.records import Batch
from coordinator.store import Store
from coordinator.store_errors import StoreConflict, StoreError, StoreFull, StoreUnavailable
from coordinator.tick import ReceiptChain
from coordinator.transaction import Transaction

pytestmark = pytest.mark.usefixtures("on_both")
ONCE = "recorded once|duplicate key value violates unique constraint"


async def raw(pool: World, statement: str) -> None:
    async with pool.store.writing() as connection:
        await connection.exec_driver_sql(statement)


async def test_what_was_committed_is_loaded_again(tmp_path: Path) -> None:
    """Accounts, the chain's end, open jobs with attempts, their entries and stored requests survive."""
    async with world(tmp_path) as pool:
        done, waits = pool.assigned(pool.job(2)), pool.job(1, stored=True)
        await pool.store.commit(pool.held(done))
        await pool.store.commit(replace(pool.held(waits), requests={waits.id: b'{"messages": []}'}))
        ended, batch = pool.closed(done, 900)
        await pool.store.commit(batch)
    store = await Store.open(url_in(tmp_path), NOW + 100)
    try:
        loaded = await store.load()
        assert {a.id: a for a in loaded.accounts} == pool.book.accounts
        assert (loaded.last_number, loaded.last_hash) == (OPENED + 3, pool.hash)
        assert loaded.open_jobs == (waits,)
        assert loaded.entries == (entries.hold(waits),)
        assert loaded.requests == {waits.id: b'{"messages": []}'}
        assert await store.job(done.id) == ended
        assert [r.receipt.state for r in await store.receipts_of(done.id)] == [ReceiptState.MATCHED]
        assert await store.setting("created_at") == repr(NOW)
        assert await store.verify() == []
    finally:
        await store.close()


async def test_the_same_batch_twice_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as pool:
        batch = pool.held(pool.job())
        await pool.store.commit(batch)
        with pytest.raises(StoreConflict, match="was recorded before"):
            await pool.store.commit(batch)
        assert (await pool.store.load()).last_number == OPENED + 1
        assert await pool.store.verify() == []


async def test_what_a_lost_answer_hid_is_found(tmp_path: Path) -> None:
    """By the hash of its last record: another batch with the same number is not it."""
    async with world(tmp_path) as pool:
        job = pool.assigned(pool.job())
        held = pool.held(job)
        assert not await pool.store.holds(held)
        await pool.store.commit(held)
        assert await pool.store.holds(held)
        other = replace(held.records[-1], hash="f" * 64)
        assert not await pool.store.holds(replace(held, records=[other]))
        _, batch = pool.closed(job, 10)
        only_receipts = Batch(receipts=batch.receipts)
        assert not await pool.store.holds(only_receipts)
        await pool.store.commit(batch)
        assert await pool.store.holds(only_receipts)
        assert not await pool.store.holds(Batch(jobs=[job]))


async def test_an_id_is_recorded_once_whatever_its_number(tmp_path: Path) -> None:
    """A second hold of one job, honestly chained, is refused by the database itself."""
    async with world(tmp_path) as pool:
        job = pool.job()
        await pool.store.commit(pool.held(job))
        again = ledger.record(pool.number + 1, AT, entries.hold(job), pool.hash)
        account = replace(pool.book.accounts[job.account])
        account.main -= job.hold
        account.reserved += job.hold
        with pytest.raises(StoreConflict, match=ONCE):
            await pool.store.commit(Batch(records=[again], accounts=[account]))
        assert await pool.store.verify() == []


@pytest.mark.parametrize("wrong", ["number", "previous"])
async def test_a_record_that_does_not_follow_is_refused(tmp_path: Path, wrong: str) -> None:
    async with world(tmp_path) as pool:
        batch = pool.held(pool.job())
        change = {"number": OPENED + 2} if wrong == "number" else {"previous": "f" * 64}
        broken = replace(batch, records=[replace(batch.records[0], **change)])
        with pytest.raises(StoreConflict, match="does not follow"):
            await pool.store.commit(broken)
        await pool.store.commit(batch)


async def test_sums_that_are_not_those_of_the_postings_are_refused(tmp_path: Path) -> None:
    """A bug in memory cannot reach the disk: one microcredit too much, or an account left out."""
    async with world(tmp_path) as pool:
        batch = pool.held(pool.job())
        off = replace(batch.accounts[0])
        off.main += 1
        with pytest.raises(StoreConflict, match="by its postings"):
            await pool.store.commit(replace(batch, accounts=[off]))
        with pytest.raises(StoreConflict, match="are not in the batch"):
            await pool.store.commit(replace(batch, accounts=[]))
        stranger = ledger.Account(AccountId("acc_nobody"))
        with pytest.raises(StoreConflict, match="does not exist"):
            await pool.store.commit(replace(batch, accounts=[*batch.accounts, stranger]))
        await pool.store.commit(batch)
        assert await pool.store.verify() == []


async def test_an_overdrawn_account_is_refused_by_sql(tmp_path: Path) -> None:
    """Even with consistent sums: CHECK knows the floor."""
    async with world(tmp_path, line=500) as pool:
        job = pool.job(hold=501)
        entry = ledger.record(OPENED + 1, AT, entries.hold(job), pool.hash)
        account = ledger.Account(job.account, 500, main=-501, reserved=501)
        with pytest.raises(StoreConflict, match="floor"):
            await pool.store.commit(Batch(records=[entry], accounts=[account], jobs=[job]))
        assert await pool.store.job(job.id) is None
        assert (await pool.store.load()).last_number == OPENED


@pytest.mark.sqlite
async def test_a_full_disk_changes_nothing_and_the_same_batch_works_later(tmp_path: Path) -> None:
    """The limit is SQLite's own, on the connection that the tick uses."""

    def limit(pages: int) -> Callable[[Transaction], None]:
        def work(transaction: Transaction) -> None:
            transaction.read(f"PRAGMA max_page_count = {pages}")

        return work

    async with world(tmp_path) as pool:
        await pool.store.transact(limit(1))  # becomes the present size: it never shrinks below
        jobs = [pool.job(hold=10) for _ in range(400)]
        batch = pool.batch([pool.record(entries.hold(job)) for job in jobs], jobs)
        for _ in range(2):
            with pytest.raises(StoreFull, match="full"):
                await pool.store.commit(batch)
            assert await pool.store.jobs() == []
            assert (await pool.store.load()).last_number == OPENED
            assert await pool.store.verify() == []
        await pool.store.transact(limit(1_000_000))
        await pool.store.commit(batch)
        assert (await pool.store.load()).last_number == OPENED + 400
        assert await pool.store.verify() == []


async def test_an_amount_beyond_64_bits_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as pool:
        job = replace(pool.job(), quote=2**63)
        with pytest.raises(StoreConflict, match="64 bits"):
            await pool.store.commit(Batch(jobs=[job]))
        assert await pool.store.job(job.id) is None


@pytest.mark.parametrize("table", ["entries", "postings"])
@pytest.mark.parametrize("statement", ["UPDATE {0} SET {1} = {1}", "DELETE FROM {0}"])
async def test_entries_and_postings_cannot_be_changed_by_raw_sql(
    tmp_path: Path, table: str, statement: str
) -> None:
    async with world(tmp_path) as pool:
        await pool.store.commit(pool.held(pool.job()))
        column = "details" if table == "entries" else "amount"
        with pytest.raises(StoreConflict, match="append-only"):
            await raw(pool, statement.format(table, column))


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("entries", "number, id, at, code, job_id, '{}', previous, hash"),
        ("postings", "entry_number, position, account_id, bucket, 0"),
    ],
)
async def test_entries_and_postings_cannot_be_replaced(tmp_path: Path, table: str, columns: str) -> None:
    """INSERT OR REPLACE deletes without a DELETE; a trigger knows."""
    async with world(tmp_path) as pool:
        await pool.store.commit(pool.held(pool.job()))
        with pytest.raises(StoreConflict, match="append-only"):
            await raw(pool, f"INSERT OR REPLACE INTO {table} SELECT {columns} FROM {table}")


async def test_readers_see_the_last_commit_and_cannot_write(tmp_path: Path) -> None:
    """While a write is open, a reader neither waits nor sees any of it."""
    async with world(tmp_path) as pool:
        job = pool.job()
        async with pool.store.writing() as connection:
            await connection.exec_driver_sql("UPDATE members SET name = 'changed'")
            assert all(member.name != "changed" for member in await pool.store.members())
            assert (await pool.store.load()).open_jobs == ()
        assert all(member.name == "changed" for member in await pool.store.members())
        await pool.store.commit(pool.held(job))
        with pytest.raises(StoreError, match=r"readonly|read-only"):
            async with pool.store.reading() as connection:
                await connection.exec_driver_sql("DELETE FROM settings")


async def test_many_read_while_the_tick_commits(tmp_path: Path) -> None:
    """Every reader sees a zero sum at every moment, and writers of other tables get their turn."""
    async with world(tmp_path) as pool:
        done = asyncio.Event()
        sums: list[int] = []

        async def read() -> None:
            while not done.is_set():
                loaded = await pool.store.load()
                sums.append(sum(a.main + a.reserved + a.held for a in loaded.accounts))
                assert len(loaded.entries) == len(loaded.open_jobs)

        async def administer() -> None:
            for n in range(10):
                await pool.store.create_key(pool.members[0].id, f"key {n}", NOW)

        async def tick() -> None:
            for _ in range(20):
                job = pool.assigned(pool.job(2))
                await pool.store.commit(pool.held(job))
                await pool.store.commit(pool.closed(job, 500)[1])
            done.set()

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for work in (read(), read(), read(), administer(), tick()):
                tasks.create_task(work)
        assert set(sums) == {0}
        assert len(await pool.store.list_keys(pool.members[0].id)) == 11
        assert await pool.store.verify() == []


async def test_a_cancelled_caller_does_not_tear_a_commit(tmp_path: Path) -> None:
    async with world(tmp_path) as pool:
        job = pool.job()
        task = asyncio.ensure_future(pool.store.commit(pool.held(job)))
        await asyncio.sleep(0)  # it has begun
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The next write waits for the one that goes on.
        await pool.store.put_setting("after", "1")
        assert await pool.store.job(job.id) == job
        assert await pool.store.verify() == []


async def test_receipts_are_recorded_once_and_in_their_chain(tmp_path: Path) -> None:
    """A second place for the same receipt, a gap and another past are refused, and nothing is changed."""
    async with world(tmp_path) as pool:
        job = pool.assigned(pool.job(2))
        await pool.store.commit(pool.held(job))
        _, batch = pool.closed(job, 10)
        await pool.store.commit(batch)
        (first,) = batch.receipts
        with pytest.raises(StoreConflict, match=r"receipt 1 .* was recorded before"):
            await pool.store.commit(Batch(receipts=[first]))
        with pytest.raises(StoreConflict, match=r"receipt 3 .* does not follow number 1"):
            await pool.store.commit(Batch(receipts=[replace(first, number=3)]))
        with pytest.raises(StoreConflict, match=r"receipt 2 .* does not follow number 1"):
            await pool.store.commit(Batch(receipts=[replace(first, number=2)]))
        (twice,) = ReceiptChain(bytes, 1, first.hash).extend([first.receipt], AT)
        with pytest.raises(StoreConflict, match=ONCE):
            await pool.store.commit(Batch(receipts=[twice]))
        stranger = replace(first.receipt, job_id=JobId("job_unknown"), attempt=99)
        (second,) = pool.receipts.extend([stranger], AT)
        await pool.store.commit(Batch(receipts=[second]))
        assert await pool.store.receipts_of(job.id) == [first]
        row = first.receipt
        assert await pool.store.receipt(row.job_id, row.attempt, row.worker_id) == first
        assert await pool.store.receipt(row.job_id, 2, row.worker_id) is None
        loaded = await pool.store.load()
        assert (loaded.last_receipt_number, loaded.last_receipt_hash) == (2, second.hash)
        assert await pool.store.verify() == []


async def test_results_of_stored_jobs(tmp_path: Path) -> None:
    async with world(tmp_path) as pool:
        job = pool.job(stored=True)
        await pool.store.commit(replace(pool.held(job), requests={job.id: b"ask"}))
        assert await pool.store.request(job.id) == b"ask"
        assert await pool.store.result(job.id) is None
        await pool.store.commit(Batch(results={job.id: b"answer"}))
        assert await pool.store.result(job.id) == b"answer"
        await pool.store.put_result(job.id, b"better")
        assert await pool.store.result(job.id) == b"better"


async def test_jobs_are_listed_in_pages(tmp_path: Path) -> None:
    """The newest first; equal moments are told apart by id; filters hold across pages."""
    async with world(tmp_path) as pool:
        jobs = [replace(pool.job(n % 2), hold=0, created_at=NOW + n // 3) for n in range(12)]
        jobs[5] = move(jobs[5], JobEvent.CANCELLED, now=NOW, why="asked", code="cancelled")
        await pool.store.commit(Batch(jobs=jobs))
        expected = sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)
        seen = []
        before = None
        while page := await pool.store.jobs(limit=5, before=before):
            assert len(page) <= 5
            seen += page
            before = page[-1].id
        assert seen == expected
        mine = await pool.store.jobs(member=pool.members[1].id)
        assert mine == [job for job in expected if job.member == pool.members[1].id]
        assert await pool.store.jobs(state=JobState.CANCELLED) == [jobs[5]]
        assert await pool.store.jobs(before=JobId("job_unknown")) == []


async def test_entries_are_read_in_pages_as_they_were_recorded(tmp_path: Path) -> None:
    """With all postings in their order, so that their hashes can be made again."""
    async with world(tmp_path) as pool:
        jobs = [pool.assigned(pool.job(2)) for _ in range(3)]
        written: list[ledger.Recorded] = []
        for batch in [pool.held(job) for job in jobs] + [pool.closed(job, 700)[1] for job in jobs]:
            await pool.store.commit(batch)
            written += batch.records
        first = await pool.store.recorded(after=OPENED, limit=4)
        assert [*first, *await pool.store.recorded(after=OPENED + 4)] == written
        assert await pool.store.recorded(after=OPENED + 6) == []
        again = ledger.record(first[3].number, first[3].at, first[3].entry, first[3].previous)
        assert again == first[3]


async def test_a_job_that_moves_keeps_one_row(tmp_path: Path) -> None:
    """Each commit writes the whole job with all its attempts."""
    async with world(tmp_path) as pool:
        job = pool.job(2)
        await pool.store.commit(pool.held(job))
        first = pool.assigned(job)
        await pool.store.commit(Batch(jobs=[first]))
        second = pool.assigned(move(first, JobEvent.REQUEUED, now=NOW), worker=1)
        await pool.store.commit(Batch(jobs=[second]))
        assert await pool.store.jobs() == [second]
        assert await pool.store.attempts(job.id) == second.attempts
        assert (await pool.store.load()).open_jobs == (second,)


@pytest.mark.sqlite
async def test_no_database_gives_a_sentence(tmp_path: Path) -> None:
    for url in ("sqlite://", "mysql://host/db", "nonsense", "sqlite:///:memory:"):
        with pytest.raises(StoreError, match="sqlite:////path"):
            await Store.open(url, NOW)
    with pytest.raises(StoreUnavailable, match="cannot be reached: connection refused"):
        await Store.open("postgresql://nobody@127.0.0.1:9/pool", NOW)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        await Store.open(f"sqlite:///{tmp_path / 'file' / 'x.db'}", NOW)
    (tmp_path / "noise.db").write_bytes(b"not a database " * 100)
    with pytest.raises(StoreError, match="file is not a database"):
        await Store.open(f"sqlite:///{tmp_path / 'noise.db'}", NOW)


async def test_the_error_behind_is_kept(tmp_path: Path) -> None:
    async with world(tmp_path) as pool:
        with pytest.raises(StoreError) as caught:
            await raw(pool, "SELECT nonsense")
        assert isinstance(caught.value.__cause__, DBAPIError)
