"""A pool's books made by the real core on a real database with real keys, exported; and forgers of exports.

A forger with the pool's own key is the strongest there is: all that such a one changes is hashed and signed
again, so that only the rules themselves, and heads that were saved before, can show it.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fixtures_store import AT, LINE, NOW, World, new_database, url_in

from coordinator.ca import CertificateAuthority
from coordinator.core import details, entries
from coordinator.core.jobs import Attempt, AttemptState, Job, JobEvent, Kind, move, part_id, with_attempt
from coordinator.core.ledger import Bucket, Entry
from coordinator.core.pricing import Demand, Segment, Shape, Tariff, Training, charge_units, payments, quote
from coordinator.core.receipts import ReceiptState
from coordinator.exports import exported
from coordinator.heads import Heads
from coordinator.records import EnrolledWorker, Issued, Member, ReceiptRow, Role
from coordinator.store import Store
from coordinator.tick import ReceiptChain
from potluck import chain
from potluck.receipts import ReceiptBody

SHAPE = Shape(active_parameters=10_000_000, head_parameters=2_000_000, attention=1_000)
TARIFF = Tariff()
Line = dict[str, Any]


@dataclass
class Books(World):
    """Members 0 and 1 own a worker each, whose keys are here."""

    ca: CertificateAuthority = field(kw_only=True)
    keys: list[Ed25519PrivateKey] = field(default_factory=list)
    attempts: dict[str, list[tuple[Attempt, int]]] = field(default_factory=dict)

    async def post(self, entry: Entry) -> None:
        await self.store.commit(self.batch([self.record(entry)], []))

    async def hold(self, member: int, tokens: int, *, kind: Kind = Kind.CHAT) -> tuple[Job, Demand]:
        """A job whose worst case is set aside; `tokens` at most of output."""
        demand = Demand(kind, SHAPE, (100,), 0 if kind is Kind.EMBEDDING else tokens)
        worst = quote(demand, TARIFF)
        job = replace(self.job(member), kind=kind, quote=worst, hold=worst, prompt_tokens=100)
        job = move(job, JobEvent.ASSIGNED, now=NOW)
        await self.store.commit(self.batch([self.record(entries.hold(job, details.of_hold(job)))], [job]))
        return job, demand

    async def close(
        self, job: Job, demand: Demand, delivered: Sequence[tuple[int, int]], *, held: bool = False
    ) -> Job:
        """The end of a job to which these workers (index, tokens) delivered, one after the other."""
        job, paid, said = self._charged(job, demand, delivered, held=held)
        ended = replace(move(job, JobEvent.SUCCEEDED, now=NOW), charge=sum(p.amount for p in paid))
        await self.store.commit(self.batch([self.record(entries.close(job, paid, said))], [ended]))
        return ended

    async def whole(self, member: int, parts: int, tokens: int) -> Job:
        """A batch of as many lines of so many tokens at most; its hold is enough for all."""
        worst = parts * quote(Demand(Kind.CHAT, SHAPE, (100,), tokens), TARIFF)
        job = replace(self.job(member), kind=Kind.BATCH, stored=True, quote=worst, hold=worst)
        job = move(job, JobEvent.ASSIGNED, now=NOW)
        await self.store.commit(self.batch([self.record(entries.hold(job, details.of_hold(job)))], [job]))
        return job

    async def part(self, whole: Job, number: int, tokens: int, worker: int) -> Job:
        """A line that this worker answers; the whole as it is afterwards."""
        demand = Demand(Kind.CHAT, SHAPE, (100,), tokens)
        part = replace(whole, id=part_id(whole.id, number), kind=Kind.CHAT, whole=whole.id, part=number)
        return await self._settled(whole, part, demand, worker, tokens)

    async def _settled(self, whole: Job, part: Job, demand: Demand, worker: int, tokens: int) -> Job:
        number = part.part
        part = replace(part, hold=quote(demand, TARIFF), settled=0, settlements=0)
        part, paid, said = self._charged(part, demand, [(worker, tokens)])
        charge = sum(p.amount for p in paid)
        ended = replace(move(part, JobEvent.SUCCEEDED, now=NOW), charge=charge)
        entry = entries.settle(whole, number, paid, said)
        whole = replace(whole, settled=whole.settled + charge, settlements=whole.settlements + 1)
        await self.store.commit(self.batch([self.record(entry)], [whole, ended]))
        await self.receipt(part, 1, worker, tokens)
        return whole

    async def fine_tune(self, member: int, bounds: Sequence[Training]) -> Job:
        """Its hold is enough for parts with these bounds."""
        worst = sum(quote(self._trains(bound), TARIFF) for bound in bounds)
        job = replace(self.job(member), kind=Kind.FINETUNE, stored=True, quote=worst, hold=worst)
        job = move(job, JobEvent.ASSIGNED, now=NOW)
        await self.store.commit(self.batch([self.record(entries.hold(job, details.of_hold(job)))], [job]))
        return job

    async def trained(self, whole: Job, number: int, done: Training, worker: int) -> Job:
        """A part of it that this worker did; the whole as it is afterwards."""
        part = replace(whole, id=part_id(whole.id, number), whole=whole.id, part=number, settled=0)
        return await self._settled(whole, part, self._trains(done), worker, done.tokens)

    def _trains(self, done: Training) -> Demand:
        return Demand(Kind.FINETUNE, SHAPE, (64,), training=done)

    async def close_whole(self, whole: Job) -> None:
        entry = entries.close(whole, [], details.of_rest(whole, ""))
        ended = replace(move(whole, JobEvent.SUCCEEDED, now=NOW), charge=whole.settled)
        await self.store.commit(self.batch([self.record(entry)], [ended]))

    def _charged(
        self, job: Job, demand: Demand, delivered: Sequence[tuple[int, int]], *, held: bool = False
    ) -> tuple[Job, list[entries.Payment], str]:
        segments, start = [], 0
        for number, (index, tokens) in enumerate(delivered, 1):
            owner = self.workers[index]
            last = number == len(delivered)
            state = AttemptState.SUCCEEDED if last else AttemptState.LOST
            attempt = Attempt(
                number=number, worker=owner.id, owner=owner.account, assigned_at=NOW, state=state,
                ended_at=NOW, tokens=tokens,
            )  # fmt: skip
            job = with_attempt(job, attempt)
            if tokens or demand.training is None:
                segments.append(Segment(number, 0, start, tokens))
            start += tokens
        finisher = len(delivered) or None
        units = charge_units(demand, TARIFF, segments, finisher)
        paid = payments(units, job.attempts, job.account, TARIFF)
        if held:
            paid = [replace(payment, bucket=Bucket.HELD) for payment in paid]
        said = details.of_work(job, demand, TARIFF, segments, finisher, paid)
        return job, paid, said

    async def refund(self, job: Job) -> Job:
        ended = move(job, JobEvent.GAVE_UP, now=NOW, why="nobody could")
        entry = entries.close(job, [], details.of_refund(job, "nobody could"))
        await self.store.commit(self.batch([self.record(entry)], [ended]))
        return ended

    async def receipt(
        self, job: Job, number: int, worker: int, claimed: int, state: ReceiptState = ReceiptState.MATCHED,
        engine: str = "emulator",
    ) -> None:  # fmt: skip
        """The worker's word on an attempt, signed, chained and countersigned."""
        body = ReceiptBody(
            job_id=job.id, attempt=number, worker_id=self.workers[worker].id, model=job.model, engine=engine,
            prompt_tokens=100, output_tokens=claimed, started_at=1, ended_at=2, output_sha256="0" * 64,
        ).encode()  # fmt: skip
        row = ReceiptRow(
            job_id=job.id, attempt=number, worker_id=self.workers[worker].id, body=body,
            signature=self.keys[worker].sign(body), state=state,
        )  # fmt: skip
        await self.store.commit(replace(self.batch([], []), receipts=self.receipts.extend([row], AT)))

    async def work(self, member: int, *delivered: tuple[int, int]) -> Job:
        """A whole job with an honest receipt of each attempt."""
        job, demand = await self.hold(member, sum(tokens for _, tokens in delivered) + 3)
        job = await self.close(job, demand, delivered)
        for number, (worker, tokens) in enumerate(delivered, 1):
            last = number == len(delivered)
            await self.receipt(
                job, number, worker, tokens, ReceiptState.MATCHED if last else ReceiptState.LATE
            )
        return job

    @property
    def heads(self) -> Heads:
        return Heads(self.store, self.ca.sign, lambda: NOW)

    async def export(self, member: int = 0) -> list[Line]:
        pages = exported(
            self.store,
            self.heads,
            pool="kitchen",
            public_key=self.ca.public_key,
            account=self.members[member].account,
        )
        return [json.loads(line) for line in b"".join([page async for page in pages]).splitlines()]


@contextlib.asynccontextmanager
async def open_books(folder: Path, line: int = LINE) -> AsyncIterator[Books]:
    """A new pool of three members, their credit lines lent."""
    await new_database(folder / "potluck.db")
    store = await Store.open(url_in(folder), NOW)
    ca = CertificateAuthority.open(folder, "kitchen", NOW)
    books = Books(store, ca=ca, receipts=ReceiptChain(ca.sign))
    try:
        await store.create_own_accounts(line)
        for n in range(3):
            member, _ = await store.create_member(f"member-{n}", Role.MEMBER, line, "key", NOW)
            books.members.append(member)
        for n in range(2):
            books.keys.append(Ed25519PrivateKey.generate())
            books.workers.append(await _enrolled(store, books.members[n], books.keys[n], n))
        books.book.accounts = {account.id: account for account in (await store.load()).accounts}
        await books.open_lines()
        yield books
    finally:
        await books.store.close()


async def _enrolled(store: Store, owner: Member, key: Ed25519PrivateKey, n: int) -> EnrolledWorker:
    await store.create_join_token(owner.id, digest=f"{n:064x}", uses=1, expires_at=NOW + 60, now=NOW)
    worker, _ = await store.enrol_worker(
        token_digest=f"{n:064x}",
        name=f"worker-{n}",
        receipt_key=key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw),
        tls_key=bytes([n]) * 91,
        issue=lambda worker: Issued(pem=b"", serial=worker, not_before=NOW, not_after=NOW + 60),
        now=NOW,
    )
    return worker


async def small_life(books: Books) -> None:
    """Something of everything: work of one and of two, own work, refunds, grants, transfers, lines, held."""
    a, b, c = (member.account for member in books.members)
    await books.work(2, (0, 5))
    await books.post(entries.transfer("t1", a, c, 100))
    await books.work(0, (0, 4), (1, 6))  # the first part on the own worker
    await books.post(entries.grant("g1", b, 50))
    await books.post(entries.line("l1", a, c, 1_000))
    job, _ = await books.hold(1, 9)
    await books.refund(job)
    await books.receipt(job, 1, 0, 2, ReceiptState.VOID)
    await books.heads.newest()
    job, demand = await books.hold(0, 8, kind=Kind.EMBEDDING)
    await books.close(job, demand, [(1, 0)], held=True)
    await books.receipt(job, 1, 1, 0)
    earned = books.book.accounts[b].held
    await books.post(entries.release(books.workers[1].id, b, earned))
    await books.work(0, (1, 7))
    await books.receipt(job, 1, 0, 99, ReceiptState.REFUSED)
    await books.hold(2, 3)  # still open


def write(path: Path, lines: Sequence[Line]) -> Path:
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    return path


def of(lines: Sequence[Line], kind: str) -> list[Line]:
    return [line for line in lines if line["type"] == kind]


def again(lines: list[Line], sign: Callable[[bytes], bytes] | None) -> list[Line]:
    """The forger's work: numbers, digests, hashes and counts as they must be; with `sign` the pool's
    signatures, too. Details that are here are hashed again.
    """
    previous = chain.GENESIS
    hashes = {0: chain.GENESIS}
    for number, entry in enumerate(of(lines, "entry"), 1):
        entry["number"], entry["previous"] = number, previous
        if "details" in entry:
            entry["details_sha256"] = chain.digest(entry["details"])
        fields = ("number", "at", "id", "code", "job", "postings", "details_sha256", "previous")
        covered = chain.entry_bytes(**{name: entry[name] for name in fields})
        entry["hash"] = hashes[number] = previous = chain.hash_of(covered)
    previous, receipts = chain.GENESIS, {0: chain.GENESIS}
    for number, receipt in enumerate(of(lines, "receipt"), 1):
        receipt["number"], receipt["previous"] = number, previous
        covered = chain.receipt_bytes(
            number=number, at=receipt["at"], worker=receipt["worker"], body=receipt["body"].encode(),
            signature=bytes.fromhex(receipt["signature"]), state=receipt["state"], previous=previous,
        )  # fmt: skip
        if sign is not None:
            receipt["countersignature"] = sign(chain.countersigned(chain.hash_of(covered))).hex()
        countersignature = bytes.fromhex(receipt["countersignature"])
        receipt["hash"] = receipts[number] = previous = chain.receipt_hash(covered, countersignature)
    of(lines, "head")[-1] |= {"number": len(hashes) - 1, "receipts_number": len(receipts) - 1}
    for head in of(lines, "head"):
        head["number"] = min(head["number"], len(hashes) - 1)
        head["receipts_number"] = min(head["receipts_number"], len(receipts) - 1)
        head["hash"], head["receipts_hash"] = hashes[head["number"]], receipts[head["receipts_number"]]
        if sign is not None:
            names = ("number", "hash", "receipts_number", "receipts_hash", "at")
            head["signature"] = sign(chain.head_bytes(**{name: head[name] for name in names})).hex()
    for kind, name in (("entry", "entries"), ("receipt", "receipts"), ("head", "heads")):
        lines[0]["counts"][name] = len(of(lines, kind))
    return lines


__all__ = ["Books", "Line", "again", "of", "open_books", "small_life", "write"]
