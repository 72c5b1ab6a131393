"""An honest export verifies; whatever is changed in one, the first record that is wrong is named."""

import asyncio
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fixtures_proof import Books, Line, again, of, open_books, small_life, write

from coordinator.core import entries
from coordinator.core.ledger import LINES
from potluck.proof.lines import Fault, HeadLine
from potluck.proof.verify import Summary, verify

Forge = Callable[[list[Line], Books], None]


@dataclass(frozen=True)
class Lived:
    """A small life and its exports, made once; every test forges a copy."""

    books: Books
    exports: dict[str, list[Line]]

    def lines(self, which: str = "0") -> list[Line]:
        return copy.deepcopy(self.exports[which])


async def _live(folder: Path) -> Lived:
    async with open_books(folder) as books:
        await small_life(books)
        exports = {str(member): await books.export(member) for member in range(3)}
        await books.work(2, (1, 3))
        return Lived(books, exports | {"later": await books.export()})


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    return asyncio.run(_live(tmp_path_factory.mktemp("lived")))


def checked(folder: Path, lines: list[Line], books: Books, **more: Any) -> Summary:
    return verify(write(folder / "export.jsonl", lines), key=books.ca.public_key, **more)


def fault_of(folder: Path, lines: list[Line], books: Books, **more: Any) -> str:
    with pytest.raises(Fault) as found:
        checked(folder, lines, books, **more)
    return str(found.value)


@pytest.mark.parametrize("member", ["0", "1", "2"])
def test_honest_books_verify_for_every_member_and_add_up(tmp_path: Path, lived: Lived, member: str) -> None:
    lines = lived.lines(member)
    summary = checked(tmp_path, lines, lived.books)
    assert summary.entries == len(of(lines, "entry"))
    assert (summary.jobs_closed, summary.jobs_open) == (5, 1)
    assert summary.receipts == {"matched": 4, "late": 1, "refused": 1, "void": 1}
    assert (summary.receipts_missing, summary.receipts_unpaid, summary.receipts_free) == (0, 0, 0)
    assert (summary.granted, summary.transferred) == (50, 100)
    assert summary.heads == 2
    assert summary.charged > summary.fees > 0
    assert summary.charges_not_recomputed == 0
    assert summary.charges_recomputed == {"0": 4, "1": 4, "2": 1}[member]


@pytest.mark.parametrize("member", [0, 1, 2], ids=["payee", "stranger", "payer"])
@pytest.mark.parametrize("signed", [1, 2])
async def test_each_paid_attempt_needs_a_receipt_of_its_own(tmp_path: Path, member: int, signed: int) -> None:
    """Two attempts that one member is paid for: the receipt of one does not stand for the other's."""
    async with open_books(tmp_path) as books:
        job, asked = await books.hold(2, 10)
        job = await books.close(job, asked, [(0, 3), (0, 4)])
        await books.receipt(job, signed, 0, 3)
        half = checked(tmp_path, await books.export(member), books)
        assert half.receipts_missing == 1
        await books.receipt(job, 3 - signed, 0, 3)
        assert checked(tmp_path, await books.export(member), books).receipts_missing == 0


def entry(lines: list[Line], number: int) -> Line:
    return of(lines, "entry")[number - 1]


def receipt(lines: list[Line], number: int) -> Line:
    return of(lines, "receipt")[number - 1]


def moves(number: int, posting: int, amount: int, other: int | None = None) -> Forge:
    """So much more in one posting, and so much less in another."""

    def forge(lines: list[Line], _books: Books) -> None:
        postings = entry(lines, number)["postings"]
        postings[posting][2] += amount
        if other is not None:
            postings[other][2] -= amount

    return forge


def sets(number: int, name: str, value: Any, kind: str = "entry") -> Forge:
    def forge(lines: list[Line], _books: Books) -> None:
        of(lines, kind)[number - 1][name] = value

    return forge


def lacks(number: int, name: str) -> Forge:
    def forge(lines: list[Line], _books: Books) -> None:
        del entry(lines, number)[name]

    return forge


def removed(kind: str, number: int) -> Forge:
    def forge(lines: list[Line], _books: Books) -> None:
        lines.remove(of(lines, kind)[number - 1])

    return forge


def swapped(lines: list[Line], _books: Books) -> None:
    one, two = lines.index(entry(lines, 7)), lines.index(entry(lines, 8))
    lines[one], lines[two] = lines[two], lines[one]


def doubled(kind: str, number: int) -> Forge:
    """The same record once more, as the last of its kind."""

    def forge(lines: list[Line], _books: Books) -> None:
        found = of(lines, kind)
        lines.insert(lines.index(found[-1]) + 1, copy.deepcopy(found[number - 1]))

    return forge


def says(number: int, change: Callable[[dict[str, Any]], Any]) -> Forge:
    """Other details, which the forger hashes again."""

    def forge(lines: list[Line], _books: Books) -> None:
        said = json.loads(entry(lines, number)["details"])
        change(said)
        entry(lines, number)["details"] = json.dumps(said)

    return forge


def claims(number: int, tokens: int) -> Forge:
    """A receipt that claims more, which its worker really signed."""

    def forge(lines: list[Line], books: Books) -> None:
        found = receipt(lines, number)
        body = json.dumps(json.loads(found["body"]) | {"output_tokens": tokens}, separators=(",", ":"))
        index = [worker.id for worker in books.workers].index(found["worker"])
        found["body"], found["signature"] = body, books.keys[index].sign(body.encode()).hex()

    return forge


def test_a_signed_end_vouches_for_each_countersignature_before_it(tmp_path: Path, lived: Lived) -> None:
    """One signature instead of one for each receipt; who looks at each finds the same."""
    books = lived.books
    checked(tmp_path, lived.lines(), books, thorough=True)
    stranger = Ed25519PrivateKey.generate()
    forged = again(lived.lines(), stranger.sign)
    assert fault_of(tmp_path, forged, books).startswith("head 1: it is not signed by the pool's key")
    expected = "receipt 1: it is not countersigned by the pool's key"
    assert fault_of(tmp_path, forged, books, thorough=True).startswith(expected)


def paid_to_another(lines: list[Line], books: Books) -> None:
    """Entry 6 is the close of others: its worker's owner gets nothing."""
    postings = entry(lines, 6)["postings"]
    (place,) = [p for p in postings if p[0] == books.members[0].account]
    place[0] = books.members[1].account


@pytest.mark.parametrize(
    ("forge", "expected"),
    [
        (moves(9, 1, 1), "entry 9: it is not what its hash was made of"),
        (moves(6, 1, 1, 2), "entry 6: it is not what its hash was made of"),
        (removed("entry", 7), "entry 7: it is missing: number 8 stands in its place"),
        (removed("entry", 19), "entry 20: the first line promises 19 entries, and 18 are here|head 2: it is of entry 19"),
        (swapped, "entry 7: it is missing: number 8"),
        (sets(9, "details", "{}"), "entry 9: .*/close has other details than it was made with"),
        (lacks(9, "details"), "entry 9: .*/close should have its details in clear"),
        (lacks(10, "details"), "entry 10: g1/grant should have its details in clear"),
        (sets(8, "previous", "0" * 64), "entry 8: it does not carry the hash of the one before"),
        (sets(2, "signature", "00" * 64, "receipt"), "receipt 2: it is not what its hash"),
        (sets(2, "countersignature", "00" * 64, "receipt"), "receipt 2: it is not what its hash"),
        (sets(2, "countersignature", "", "receipt"), "receipt 2: it is not what its hash"),
        (removed("receipt", 3), "receipt 3: it is missing"),
        (sets(1, "signature", "00" * 64, "head"), "head 1: it is not signed by the pool's key"),
        (sets(1, "hash", "ab" * 32, "head"), "head 1: it signs another entry 13"),
        (sets(2, "receipts_hash", "ab" * 32, "head"), "head 2: it signs another receipt 7"),
        (sets(1, "at", "2027-01-15T08:00:01.000Z", "head"), "head 1: it is not signed"),
        (removed("head", 2), "head 2: the first line promises 2 heads, and 1 are here"),
        (sets(1, "receipt_key", "ab" * 32, "worker"), "receipt 1: it is not signed by the key of wrk_"),
        (removed("worker", 1), "entry 6: .*/close pays acc_.* for a worker of another, wrk_"),
        (sets(1, "public_key", "ab" * 32, "pool"), "line 1: it names the public key abab"),
    ],
)  # fmt: skip
def test_a_change_to_the_file_is_named(tmp_path: Path, lived: Lived, forge: Forge, expected: str) -> None:
    books, lines = lived.books, lived.lines()
    forge(lines, books)
    with pytest.raises(Fault, match=expected):
        checked(tmp_path, lines, books)


@pytest.mark.parametrize(
    ("forge", "expected"),
    [
        (moves(6, 1, 1), "entry 6: .*/close does not balance: money adds up to 1"),
        (moves(11, 0, 1), "entry 11: l1/line does not balance: .* credit lines to 1"),
        (moves(9, 2, 1, 1), "entry 9: .*/close does not charge what its details cost"),
        (moves(15, 2, 1, 3), "entry 15: .*/close does not charge what its details cost: posting 2"),
        (says(9, lambda said: said["segments"][1].__setitem__(3, 60)), "entry 9: .*formula gives"),
        (says(9, lambda said: said["segments"][1].__setitem__(2, 3)), "entry 9: .*charges token 3 of choice 0 where token 4 is next"),
        (says(9, lambda said: said["shape"].__setitem__(0, 20_000_000)), "entry 9: .*formula gives"),
        (says(9, lambda said: said["tariff"].__setitem__(1, 500)), "entry 9: .*takes a fee of"),
        (says(9, lambda said: said["paid"][0].update(tokens=9)), "entry 9: .*says that attempt 2 had 9 tokens"),
        (says(9, lambda said: said["paid"].clear()), "entry 9: .*does not charge what its details cost"),
        (says(9, lambda said: said["paid"].append(said["paid"][0])), "entry 9: .*pays attempt 2 twice"),
        (says(9, lambda said: said["paid"][0].update(worker="wrk_x")), "entry 9: .*for a worker of another, wrk_x"),
        (says(9, lambda said: said.pop("shape")), "entry 9: .*has details without shape"),
        (says(9, lambda said: said.update(prompts=[-1])), "entry 9: .*`prompts` are not the whole numbers"),
        (says(9, lambda said: said.update(segments=7)), "entry 9: .*`segments` is no list"),
        (says(9, lambda said: said.update(kind=1.5)), "entry 9: .*1.5 is no whole number"),
        (moves(6, 0, -10**9, 1), "entry 6: .*/close takes 100.* microcredits out of a hold of which"),
        (moves(6, 0, 1, 1), "entry 6: .*/close leaves 1 microcredits of the hold in it for ever"),
        (moves(6, 1, -10**7, 2), "entry 6: .*/close is no close: it must return the rest"),
        (doubled("entry", 6), "entry 20: .*/close comes after the close of its job, entry 6"),
        (doubled("entry", 5), "entry 20: .*/hold is the second hold of its job"),
        (doubled("entry", 7), "entry 20: t1/transfer has an id that an entry before has taken"),
        (removed("entry", 5), "entry 5: .*/close has no hold before it"),
        (moves(7, 1, 10**10, 0), "entry 7: t1/transfer leaves acc_.* below its floor of -1000000000"),
        (moves(8, 1, 10**10, 0), "entry 8: .*/hold leaves acc_.* below its floor"),
        (moves(11, 1, 10**10, 0), "entry 11: l1/line leaves acc_.* with less than nothing"),
        (moves(16, 1, 10**9, 0), "entry 16: .*/release leaves acc_.* with less than nothing"),
        (moves(7, 1, -200, 0), "entry 7: t1/transfer is no transfer"),
        (sets(7, "id", "t1/tip"), "entry 7: t1/tip has an id that does not follow from its cause"),
        (sets(6, "id", "job_x/close"), "entry 6: job_x/close has an id that does not follow"),
        (sets(6, "code", "gift"), "entry 6: .*/close has the code gift, which is none of hold"),
        (sets(16, "id", "wrk_x/release"), "entry 16: wrk_x/release releases earnings of wrk_x"),
        (doubled("receipt", 1), "receipt 8: the receipt of wrk_.* was recorded before: a receipt counts once"),
        (sets(2, "signature", "00" * 64, "receipt"), "receipt 2: it is not signed by the key of wrk_"),
        (sets(7, "state", "matched", "receipt"), "receipt 7: attempt 1 of job_.* was wrk_.* by a receipt before"),
        (sets(1, "state", "void", "receipt"), "receipt 1: it is void, .* was charged by entry 6"),
        (sets(1, "state", "great", "receipt"), "receipt 1: its state `great` is none of"),
        (claims(3, 8), "receipt 3: it is matched and claims 8 tokens for attempt 2 of job_.*, but entry 9 counts 6"),
        (paid_to_another, "receipt 1: it is matched, but entry 6, the close of job_.*, does not pay acc_"),
    ],
)  # fmt: skip
def test_what_a_pool_forges_with_its_own_key_is_named(
    tmp_path: Path, lived: Lived, forge: Forge, expected: str
) -> None:
    """All is hashed and signed again, so only the rules can show it."""
    books, lines = lived.books, lived.lines()
    forge(lines, books)
    with pytest.raises(Fault, match=expected):
        checked(tmp_path, again(lines, books.ca.sign), books)


async def _closed(folder: Path) -> tuple[Books, list[Line]]:
    """Invitations of all kinds, an account that is closed and gets money afterwards."""
    async with open_books(folder) as books:
        a, b, c = (member.account for member in books.members)
        for invite, lender, amount in (("inv_1", a, 500), ("inv_2", a, 0), ("inv_3", LINES, 700)):
            await books.post(entries.set_aside(invite, lender, amount))
        await books.post(entries.ended("inv_1", c, 500))
        await books.post(entries.ended("inv_2", a, 0))
        await books.post(entries.ended("inv_3", LINES, 700))
        await books.post(entries.transfer("t1", c, b, 300))
        await books.post(entries.retire(books.book.accounts[c], a, 500))
        await books.post(entries.transfer("t2", b, c, 40))
        await books.post(entries.leftover(books.book.accounts[c], 1))
        return books, await books.export()


async def test_invitations_and_closed_accounts_verify(tmp_path: Path) -> None:
    """Also the line that is none, the pool's own, and what came to an account after it was closed."""
    books, lines = await _closed(tmp_path)
    assert checked(tmp_path, lines, books).entries == len(of(lines, "entry"))


@pytest.mark.parametrize(
    ("postings", "expected"),
    [
        ([["commons", "main", -9], ["ME", "main", 9]], "makes acc_.* answer for more than the line"),
        ([["ghost", "credit_line", 9], ["lines", "credit_line", -9]], "gives it something"),
        ([["ME", "main", -9], ["OTHER", "main", -9], ["commons", "main", 18]], "moves what others have"),
        ([["ME", "main", -9], ["commons", "main", 9]], "answer for more than the line that comes back"),
    ],
)
async def test_closing_an_account_moves_nothing_of_others(
    tmp_path: Path, postings: list[list[Any]], expected: str
) -> None:
    """Hashed and signed as if it were so: an account that never was is no way to get at money."""
    books, lines = await _closed(tmp_path)
    names = {"ME": books.members[0].account, "OTHER": books.members[1].account}
    forged = next(line for line in of(lines, "entry") if line["id"].endswith("/retire"))
    forged["id"] = "ghost/retire"
    forged["postings"] = [[names.get(account, account), bucket, n] for account, bucket, n in postings]
    with pytest.raises(Fault, match=expected):
        checked(tmp_path, again(lines, books.ca.sign), books)


async def test_only_entries_open_accounts(tmp_path: Path) -> None:
    """A line of another kind that looks like an opening lends nobody anything."""
    books, lines = await _closed(tmp_path)
    trick = {
        "type": "worker",
        "id": "ghost/open/line",
        "account": books.members[0].account,
        "receipt_key": "00" * 32,
        "postings": [["lines", "credit_line", 0], ["ghost", "credit_line", 10**18]],
    }
    lines.insert(1, trick)
    lines[0]["counts"]["workers"] += 1
    paid = next(line for line in of(lines, "entry") if line["id"] == "t1/transfer")
    paid["postings"][0][0] = "ghost"
    with pytest.raises(Fault, match="leaves ghost at -300 microcredits, below its floor"):
        checked(tmp_path, again(lines, books.ca.sign), books)


def test_half_a_character_is_no_crash(tmp_path: Path, lived: Lived) -> None:
    lines = lived.lines()
    entry(lines, 9)["details"] = "\ud800"
    assert "entry 9" in fault_of(tmp_path, lines, lived.books)


def test_whoever_lacks_the_pools_key_can_hash_again_and_not_sign(tmp_path: Path, lived: Lived) -> None:
    books, lines = lived.books, lived.lines()
    entry(lines, 18)["at"] = "2027-01-15T09:00:00.000Z"
    said = fault_of(tmp_path, again(lines, None), books)
    assert said == "head 2: it is not signed by the pool's key"


def head_in(lines: list[Line], number: int) -> HeadLine:
    names = ("number", "hash", "receipts_number", "receipts_hash", "at")
    found = of(lines, "head")[number - 1]
    return HeadLine(**{name: found[name] for name in names}, signature=bytes.fromhex(found["signature"]))


def test_a_rewritten_history_shows_by_a_head_that_was_saved_before(tmp_path: Path, lived: Lived) -> None:
    """Everything is consistent and signed by the pool itself: nothing but the old head can tell."""
    books, lines = lived.books, lived.lines()
    saved = head_in(lines, 1)
    assert (checked(tmp_path, lines, books, saved=saved)).saved_head == 13
    for posting in entry(lines, 10)["postings"]:
        posting[2] = posting[2] * 4 // 5
    again(lines, books.ca.sign)
    assert (checked(tmp_path, lines, books)).granted == 40
    said = fault_of(tmp_path, lines, books, saved=saved)
    assert said.startswith("saved head 13: it signs another entry 13 than the one here: the history was")


def test_a_saved_head_must_be_the_pools_and_not_newer_than_the_export(tmp_path: Path, lived: Lived) -> None:
    books, lines = lived.books, lived.lines()
    later = head_in(lived.lines("later"), 2)
    assert "ends with entry 19" in fault_of(tmp_path, lines, books, saved=later)
    forged = HeadLine(
        later.number, later.hash, later.receipts_number, later.receipts_hash, later.at, bytes(64)
    )
    assert "not signed by the pool's key" in fault_of(tmp_path, lines, books, saved=forged)


def test_the_first_wrong_record_is_named_when_several_are(tmp_path: Path, lived: Lived) -> None:
    """A wrong signature is found later than it is read, and still comes before what follows it."""
    books, lines = lived.books, lived.lines()
    sets(2, "signature", "00" * 64, "receipt")(lines, books)
    sets(5, "state", "great", "receipt")(lines, books)
    said = fault_of(tmp_path, again(lines, books.ca.sign), books)
    assert said.startswith("receipt 2: it is not signed by the key of")
