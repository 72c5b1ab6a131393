"""Whatever a pool lives through, its export verifies for everybody, and each changed number shows."""

import asyncio
import copy
import json
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from fixtures_proof import Books, Line, again, of, open_books, write
from fixtures_store import NOW, url_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.ca import CertificateAuthority
from coordinator.core import entries
from coordinator.core.jobs import AccountId, Kind
from coordinator.core.ledger import COMMONS
from coordinator.core.receipts import ReceiptState
from coordinator.exports import exported
from coordinator.heads import Heads
from coordinator.store import Store
from potluck.proof.lines import Fault
from potluck.proof.verify import verify

DATA = Path(__file__).parent / "data"
Step = tuple[str, int, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["work", "two", "embed", "refund", "open", "transfer", "grant", "line", "head"]),
        st.integers(0, 2),  # which member
        st.integers(0, 1),  # which worker
        st.integers(1, 40),  # how much
    ),
    min_size=1,
    max_size=12,
)


async def step(books: Books, what: str, member: int, worker: int, amount: int) -> None:
    account, other = books.members[member].account, books.members[(member + 1) % 3].account
    match what:
        case "work":
            await books.work(member, (worker, amount))
        case "two":
            await books.work(member, (worker, amount), (1 - worker, amount // 2 + 1))
        case "embed":
            job, demand = await books.hold(member, 0, kind=Kind.EMBEDDING)
            await books.close(job, demand, [(worker, 0)], held=bool(amount % 2))
        case "refund":
            job, _ = await books.hold(member, amount)
            await books.refund(job)
            await books.receipt(job, 1, worker, amount, ReceiptState.VOID)
        case "open":
            await books.hold(member, amount)
        case "transfer":
            await books.post(entries.transfer(f"t{books.number}", account, other, amount))
        case "grant":
            await books.post(entries.grant(f"g{books.number}", account, amount))
        case "line":
            await books.post(entries.line(f"l{books.number}", account, other, amount))
        case _:
            await books.heads.newest()


async def lived(folder: Path, moves: list[Step]) -> tuple[list[list[Line]], Books]:
    async with open_books(folder) as books:
        for move in moves:
            await step(books, *move)
        return [await books.export(member) for member in range(3)], books


def numbers_of(lines: list[Line]) -> list[tuple[int, int]]:
    """Where each posted amount stands: (line, posting)."""
    return [
        (place, posting)
        for place, line in enumerate(lines)
        if line["type"] == "entry"
        for posting in range(len(line["postings"]))
    ]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.data())
def test_any_life_verifies_and_any_changed_amount_shows(moves: list[Step], data: st.DataObject) -> None:
    """Also where the pool itself changes it: one amount alone never balances."""
    folder = Path(tempfile.mkdtemp(prefix="potluck-proof-"))
    try:
        exports, books = asyncio.run(lived(folder, moves))
        for lines in exports:
            summary = verify(write(folder / "export.jsonl", lines), key=books.ca.public_key)
            assert summary.entries == len(of(lines, "entry"))
            assert summary.charges_not_recomputed == 0
        lines = copy.deepcopy(exports[0])
        place, posting = data.draw(st.sampled_from(numbers_of(lines)))
        lines[place]["postings"][posting][2] += data.draw(st.sampled_from([-1, 1, 1_000_000]))
        number = lines[place]["number"]
        with pytest.raises(Fault, match=f"entry {number}: it is not what its hash was made of"):
            verify(write(folder / "export.jsonl", lines), key=books.ca.public_key)
        with pytest.raises(Fault, match=f"entry {number}: .* does not balance"):
            verify(write(folder / "export.jsonl", again(lines, books.ca.sign)), key=books.ca.public_key)
    finally:
        shutil.rmtree(folder)


async def migrated(folder: Path) -> tuple[list[Line], CertificateAuthority]:
    """The books of the first release, brought forward and exported: lines were lent later, and the old
    receipts have no countersignature.
    """
    connection = sqlite3.connect(folder / "potluck.db")
    connection.executescript((DATA / "revision_0001.sql").read_text())
    connection.close()
    store = await Store.open(url_in(folder), NOW)
    ca = CertificateAuthority.open(folder, "kitchen", NOW)
    try:
        assert (await store.audit(ca.public_key)).findings == []
        (account, *_) = [a.id for a in (await store.load()).accounts if a.id != COMMONS]
        pages = exported(
            store,
            Heads(store, ca.sign, lambda: NOW),
            pool="kitchen",
            public_key=ca.public_key,
            account=AccountId(account),
        )
        return [json.loads(line) for line in b"".join([page async for page in pages]).splitlines()], ca
    finally:
        await store.close()


async def test_chains_of_the_first_release_keep_their_floors(tmp_path: Path) -> None:
    """A line that was written down later counts from the start; without it the first overdraft is named.

    Its receipts were made by hand, so only the entries are looked at here.
    """
    lines, ca = await migrated(tmp_path)
    lines = [line for line in lines if line["type"] != "receipt"]
    again(lines, ca.sign)
    summary = await asyncio.to_thread(verify, write(tmp_path / "export.jsonl", lines), key=ca.public_key)
    assert summary.jobs_closed > 0
    opening = next(line for line in of(lines, "entry") if line["id"].endswith("/open/line"))
    account = opening["postings"][1][0]
    overdrawn = next(
        line for line in of(lines, "entry") if any(p[0] == account and p[2] < 0 for p in line["postings"])
    )
    lines.remove(opening)
    again(lines, ca.sign)
    with pytest.raises(Fault, match=f"entry {overdrawn['number']}: .* below its floor of 0"):
        await asyncio.to_thread(verify, write(tmp_path / "export.jsonl", lines), key=ca.public_key)
