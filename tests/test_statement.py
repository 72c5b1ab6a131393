"""The statement through the API: each movement in words that its account's owner understands."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fixtures_api import MODEL, Said, Stand, deltas, error_of, stand
from test_api_pool import end_of, get, post

from coordinator.core import details, entries
from coordinator.core.ledger import Entry
from coordinator.dashboard.shown import environment
from potluck.results import plain, read, read_all
from potluck.statement import StatementPage, Total
from potluck.v1 import session_pb2, work_pb2

__all__ = ["stand"]


async def statement(stand: Stand, by: str = "alice", **params: Any) -> list[dict[str, Any]]:
    """All the lines on one page."""
    body = await get(stand, "/pool/v1/statement", by, params=params)
    lines: list[dict[str, Any]] = body["data"]
    assert not body["has_more"]
    return lines


async def record(stand: Stand, entry: Entry) -> None:
    await stand.context.pool.accounts.record(entry)


def account(stand: Stand, name: str) -> Any:
    return stand.members[name].account


async def asked(stand: Stand, by: str = "alice", **more: Any) -> str:
    """A stored job, ended and in the books; its id."""
    request = {"model": MODEL, "messages": [{"role": "user", "content": "a b c"}], **more}
    made = await post(stand, "/pool/v1/jobs", {"kind": "chat", "request": request}, by)
    await end_of(stand, made["id"])
    return str(made["id"])


async def test_one_job_from_all_its_sides(stand: Stand) -> None:
    """Who asked, who served and the commons see the same entry, each the own amount, names and words."""
    job = await asked(stand)
    shown = await get(stand, f"/pool/v1/jobs/{job}")
    [alice], [bob] = await statement(stand, "alice"), await statement(stand, "bob")
    [commons] = await statement(stand, "admin", account="commons")
    tokens_in, tokens = shown["prompt_tokens"], shown["output_tokens"]
    assert alice["words"] == f"asked {MODEL}: {tokens_in} tokens in, {tokens} out"
    assert bob["words"] == f"served {tokens} tokens of {MODEL} for alice's job {job} (attempt 1 on rig)"
    assert commons["words"] == f"fee for alice's job {job}"
    assert {line["number"] for line in (alice, bob, commons)} == {alice["number"]}
    assert alice["amount"] == -shown["charge"] == -(bob["amount"] + commons["amount"])
    assert (alice["code"], alice["job"], alice["held"]) == ("close", job, 0)
    assert alice["counterparties"] == ["bob", "commons"]
    assert bob["counterparties"] == ["alice", "commons"]
    assert all(line["balance"] == line["amount"] for line in (alice, bob, commons))


async def test_holds_are_shown_where_they_are_asked_for(stand: Stand) -> None:
    """They change no balance, so that by default they are left out; so do credit lines."""
    job = await asked(stand)
    close, hold, line = await statement(stand, holds="true")
    assert hold["words"] == f"set aside for job {job} ({MODEL})"
    assert (hold["amount"], hold["balance"]) == (0, 0)
    assert hold["reserved"] == -close["reserved"] > 0
    assert (line["code"], line["words"]) == ("line", "first credit line of 1,000 credits lent by the pool")
    assert [line["code"] for line in await statement(stand, code="hold")] == ["hold"]
    assert [line["code"] for line in await statement(stand)] == ["close"]


async def test_own_jobs_on_own_machines_are_free_and_say_so(stand: Stand) -> None:
    await asked(stand, "bob")
    close, _hold, _line = await statement(stand, "bob", holds="true")
    assert close["amount"] == 0
    assert close["words"].startswith(f"asked {MODEL} on your own machines: ")
    assert close["words"].endswith(", free")
    assert await statement(stand, "bob") == []


async def test_an_embedding_counts_its_texts_and_what_went_in(stand: Stand) -> None:
    request = {"model": MODEL, "input": ["a b", "c"]}
    made = await post(stand, "/pool/v1/jobs", {"kind": "embedding", "request": request})
    await end_of(stand, made["id"])
    [alice], [bob] = await statement(stand), await statement(stand, "bob")
    assert alice["words"] == f"asked {MODEL}: 3 tokens in, 2 vectors out"
    assert bob["words"].startswith(f"served 3 tokens of {MODEL} for alice's job ")
    [total] = (await get(stand, "/pool/v1/statement/totals", params={"by": "day"}))["data"]
    assert total["tokens_asked"] == 3


async def test_a_cancelled_job_says_who_ended_it_and_what_came_before(stand: Stand) -> None:
    """What was delivered is paid; nothing delivered, and the hold returns for the same reason."""
    going = asyncio.Event()

    async def script(_: session_pb2.Assign) -> AsyncIterator[Said]:
        yield deltas("a", "b")[:1]
        going.set()
        await asyncio.Event().wait()

    stand.bench.script = script
    request = {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}
    made = await post(stand, "/pool/v1/jobs", {"kind": "chat", "request": request})
    await asyncio.wait_for(going.wait(), 10)
    await post(stand, f"/pool/v1/jobs/{made['id']}/cancel", {})
    await end_of(stand, made["id"])
    [line] = await statement(stand)
    assert line["words"].endswith("1 out (alice cancelled it)")
    assert line["amount"] < 0


async def test_a_refund_gives_its_reason(stand: Stand) -> None:
    """A job that failed costs nothing: it is told with the holds, as what returned and why."""

    async def script(_: session_pb2.Assign) -> AsyncIterator[Said]:
        yield work_pb2.Failure(fault=work_pb2.FAULT_JOB, code="bad", message="the prompt has no end")

    stand.bench.script = script
    await asked(stand)
    close, hold, _line = await statement(stand, holds="true")
    assert close["words"] == "returned: the prompt has no end"
    assert (close["amount"], close["reserved"]) == (0, -hold["reserved"])
    assert await statement(stand) == []


async def test_money_in_words(stand: Stand) -> None:
    """Transfers, grants and credit lines from both ends; a note stands on one line, the amounts beside it."""
    alice, bob = account(stand, "alice"), account(stand, "bob")
    note = details.written(note="for the\npizza")
    await record(stand, entries.transfer("t1", alice, bob, 5_000_000, note))
    await record(stand, entries.grant("g1", alice, 7_000_000, details.written(why="hackathon prize")))
    await record(stand, entries.line("l1", alice, bob, 100_000_000))
    await record(stand, entries.line("l2", alice, bob, -1_000_000))
    back, lent, granted, sent, _ = await statement(stand, holds="true")
    assert sent["words"] == "sent to bob: for the pizza"
    assert (sent["amount"], sent["balance"], sent["counterparties"]) == (-5_000_000, -5_000_000, ["bob"])
    assert granted["words"] == "granted by the pool: hackathon prize"
    assert (granted["amount"], granted["balance"]) == (7_000_000, 2_000_000)
    assert lent["words"] == "credit line of 100 credits lent to bob"
    assert (lent["amount"], lent["credit_line"], lent["balance"]) == (0, -100_000_000, 2_000_000)
    assert back["words"] == "credit line of 1 credit back from bob"
    taken, got, received, _ = await statement(stand, "bob", holds="true")
    assert received["words"] == "received from alice: for the pizza"
    assert got["words"] == "credit line of 100 credits lent by alice"
    assert taken["words"] == "credit line of 1 credit taken back by alice"
    [commons] = await statement(stand, "admin", account="commons")
    assert (commons["words"], commons["amount"]) == ("granted to alice: hackathon prize", -7_000_000)


async def test_only_the_parties_see_an_entry(stand: Stand) -> None:
    """Nobody has a way into another account; the commons is the admins'."""
    job = await asked(stand)
    assert await statement(stand, "admin", job=job) == []
    mine = await statement(stand, job=job, account=account(stand, "alice"))
    assert [line["job"] for line in mine] == [job]
    for by, wanted, status, code in (
        ("alice", "commons", 403, "admin_needed"),
        ("alice", account(stand, "bob"), 400, "invalid_value"),
        ("admin", account(stand, "bob"), 400, "invalid_value"),
    ):
        for path in ("/pool/v1/statement", "/pool/v1/statement/totals"):
            response = await stand.ask("GET", path, by=by, params={"account": wanted})
            assert (response.status_code, error_of(response)["code"]) == (status, code)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"limit": "501"}, "limit"),
        ({"before": "0"}, "before"),
        ({"code": "theft"}, "code"),
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-13-01"}, "to"),
        ({"to": "9999-12-31"}, "to"),
        ({"from": "2026-11-26T25:00:00Z"}, "from"),
        ({"from": "2026-11-26", "to": "2026-11-24"}, "from"),
        ({"form": "2026-11-26"}, "form"),
        ({"format": "xlsx"}, "format"),
        ({"format": "csv", "limit": "5"}, "limit"),
    ],
)
async def test_a_wrong_parameter_is_refused_by_name(stand: Stand, params: dict[str, str], param: str) -> None:
    response = await stand.ask("GET", "/pool/v1/statement", params=params)
    assert (response.status_code, error_of(response)["param"]) == (400, param)


async def test_days_and_times_bound_a_statement(stand: Stand) -> None:
    """A day as `to` is included, a time is the first moment that is not; zones are understood."""
    await asked(stand)
    [line] = await statement(stand)
    at, day = line["at"], line["at"][:10]
    zone = at.replace("Z", "+00:00")
    for fits in ({"from": day, "to": day}, {"from": at}, {"from": zone}, {"from": at, "to": "2999-01-01"}):
        assert [found["number"] for found in await statement(stand, **fits)] == [line["number"]]
    for misses in ({"to": at}, {"from": "2999-01-01"}, {"to": "2020-01-01"}):
        assert await statement(stand, **misses) == []
    assert await statement(stand, model=MODEL) == [line]
    assert await statement(stand, model="another") == []


async def test_the_csv_file_is_the_json(stand: Stand) -> None:
    """RFC 4180 with a header; what a spreadsheet would compute is disarmed, numbers stay numbers."""
    store, alice = stand.context.store, account(stand, "alice")
    mallory, _ = await store.create_member('=1+1, "Ltd"', stand.members["alice"].role, 0, "k", 1.0)
    stand.context.pool.accounts.know(mallory.account)
    await asked(stand)
    for number in range(205):  # more than a bite
        note = details.written(note=f'=SUM(A1), "{number}"')
        await record(stand, entries.transfer(f"t{number}", alice, mallory.account, 1 + number, note))
    response = await stand.ask("GET", "/pool/v1/statement", params={"format": "csv", "holds": "true"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == 'attachment; filename="potluck-statement.csv"'
    assert response.text.count("\r\n") == response.text.count("\n")
    rows = list(csv.DictReader(io.StringIO(response.text, newline=""), strict=True))
    lines = await statement(stand, holds="true", limit=500)
    assert len(lines) == 208
    assert rows == [{name: as_cell(value) for name, value in line.items()} for line in lines]
    assert rows[0]["counterparties"] == """'=1+1, "Ltd\""""
    assert rows[0]["amount"] == "-205"
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row.values())


def as_cell(value: Any) -> str:
    text = "; ".join(value) if isinstance(value, list) else "" if value is None else str(value)
    return f"'{text}" if text.startswith(("=", "+", "@")) else text


async def test_totals_keep_work_and_money_apart(stand: Stand) -> None:
    """given is gross and splits into what arrived and the fee; contribution is given - taken, and its sum over
    all members is 0, as is that of tokens served and asked."""
    alice, bob = account(stand, "alice"), account(stand, "bob")
    await asked(stand)
    await asked(stand)
    await asked(stand, "bob")  # on the own machine: no charge, no tokens
    await record(stand, entries.transfer("t1", bob, alice, 3_000_000))
    await record(stand, entries.grant("g1", bob, 1_000_000))
    totals = {}
    for name in ("alice", "bob"):
        [totals[name]] = (await get(stand, "/pool/v1/statement/totals", name))["data"]
        assert totals[name]["change"] == stand.available(name)["balance"]
    [commons] = (await get(stand, "/pool/v1/statement/totals?account=commons", "admin"))["data"]
    assert totals["alice"]["taken"] == totals["bob"]["given"] > 0
    assert totals["bob"]["given"] == totals["bob"]["given_net"] + totals["bob"]["fee"]
    assert totals["bob"]["fee"] == commons["fees"] > 0
    assert totals["alice"]["contribution"] == -totals["bob"]["contribution"] < 0
    assert totals["alice"]["tokens_asked"] == totals["bob"]["tokens_served"] > 0
    assert totals["bob"]["tokens_asked"] == 0
    assert (totals["alice"]["received"], totals["bob"]["sent"]) == (3_000_000, 3_000_000)
    assert (totals["bob"]["granted"], commons["sent"]) == (1_000_000, 1_000_000)
    assert commons["contribution"] == 0
    month = totals["alice"]["period"]
    days = (await get(stand, "/pool/v1/statement/totals", params={"by": "day", "from": f"{month}-01"}))[
        "data"
    ]
    assert sum(day["taken"] for day in days) == totals["alice"]["taken"]
    late = await get(stand, "/pool/v1/statement/totals", params={"from": "2999-01-01"})
    assert late == {"data": []}


async def test_the_client_reads_what_the_pool_answers(stand: Stand) -> None:
    """The SDK's shapes are the routes': no field is missing on either side."""
    await asked(stand)
    answer = await get(stand, "/pool/v1/statement", params={"holds": "true"})
    assert plain(read(StatementPage, answer)) == answer
    totals = (await get(stand, "/pool/v1/statement/totals"))["data"]
    assert plain(read_all(Total, totals)) == totals


@pytest.mark.parametrize(
    ("words", "job", "expected"),
    [
        ("asked tiny, part 2 of job_w: 3 in", "job_w", "asked tiny, part 2 of JOB: 3 in"),
        ("asked tiny: 3 tokens in", "job_a", "asked tiny: 3 tokens in JOB"),
        ("granted by the pool", None, "granted by the pool"),
    ],
)
def test_a_line_of_the_dashboard_names_its_job_once(words: str, job: str | None, expected: str) -> None:
    line = {"at": "2026-01-01T00:00:00Z", "words": words, "job": job, "amount": 0, "held": 0, "balance": 0}
    fragment = environment().get_template("fragments/statement.html")
    shown = fragment.render(lines=[line], more=False, asked={})
    link = f'<a class="hint" href="/jobs/{job}">{job}</a>'
    assert f"<td>{expected.replace('JOB', link)}</td>" in shown
