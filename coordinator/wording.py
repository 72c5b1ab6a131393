"""What an entry means to one of its parties, in words. Amounts stand beside the words, not in them.

An entry's details may be older than `core.details`: what they do not say is left out, and no entry is without
words. Only what concerns the reader's side is told: a worker's owner sees the own attempts, the one
who asked sees the whole job.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from coordinator.core.entries import OPENED, worked
from coordinator.core.ledger import COMMONS, LINES, Bucket, Code, Entry, Posting
from coordinator.movements import Known
from potluck import credits as amounts

NOTE_CHARS_MAX: Final = 300
COMMONS_NAME: Final = "commons"
POOL_NAME: Final = "the pool"
SOMEBODY: Final = "somebody"


@dataclass(frozen=True, slots=True)
class Telling:
    """One entry as `reader`, an account among its parties, is told it."""

    entry: Entry
    reader: str
    known: Known
    job_why: str = ""

    def words(self) -> str:
        """One line, which begins with a word of ours and never with what a member wrote."""
        return _TOLD[self.entry.code](self)

    def counterparties(self) -> list[str]:
        """The names of the other parties in the order of the entry, each once. To a worker's owner, those are
        who asked and the commons."""
        entry, reader = self.entry, self.reader
        parties = [posting.account for posting in entry.postings if posting.amount]
        if entry.code in {Code.CLOSE, Code.SETTLE} and reader not in {self.payer, COMMONS}:
            parties = [party for party in parties if party in {self.payer, COMMONS}]
        return list(dict.fromkeys(self.name(party) for party in parties if party != reader))

    @property
    def payer(self) -> str:
        """Of an entry of a job: whose hold it is."""
        return self.entry.postings[0].account

    @property
    def details(self) -> Mapping[str, Any]:
        try:
            found = json.loads(self.entry.details)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def name(self, account: str) -> str:
        if account == LINES:
            return POOL_NAME
        return COMMONS_NAME if account == COMMONS else self.known.members.get(account, SOMEBODY)

    def worker(self, attempt: int) -> str:
        return self.known.tries.get((worked(self.entry) or "", attempt), ("", "a worker"))[1]

    def owner(self, attempt: int) -> str:
        return self.known.tries.get((worked(self.entry) or "", attempt), ("", ""))[0]

    @property
    def note(self) -> str:
        """Why somebody moved it, after a colon; empty if nothing was said."""
        details = self.details
        said = (details.get(key) for key in ("note", "why", "reason"))
        lines = (one_line(text) for text in said if isinstance(text, str))
        return next((f": {line}" for line in lines if line), "")


def one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= NOTE_CHARS_MAX else line[: NOTE_CHARS_MAX - 1] + "…"


# ---- jobs


def _hold(told: Telling) -> str:
    return f"set aside for job {told.entry.job} ({_model(told)})"


def _work(told: Telling) -> str:
    """A settlement or a close, from up to three sides, of which one account may have several."""
    sides = []
    if told.reader == told.payer:
        sides.append(_asked(told))
    if told.reader == COMMONS:
        sides.append(f"fee for {told.name(told.payer)}'s job {told.entry.job}")
    elif any(p.account == told.reader for p in told.entry.postings[_own_postings(told.entry) :]):
        sides.append(_served(told))
    return "; ".join(sides) or f"job {told.entry.job}"


def _own_postings(entry: Entry) -> int:
    """How many postings at the begin are the payer's: out of the hold, and at a close what returns."""
    return 2 if entry.code is Code.CLOSE else 1


def _asked(told: Telling) -> str:
    details, part = told.details, _part(told.entry)
    why = details.get("why") or told.job_why
    if "segments" not in details:
        if "settled" in details:
            ended = f" ({one_line(str(why))})" if why else ""
            return f"returned: what the parts of {told.entry.job} did not need{ended}"
        if told.entry.code is Code.CLOSE and len(told.entry.postings) == 2:
            return f"returned: {one_line(str(why or 'nothing was charged'))}"
        return f"asked {_model(told)}{part}: job {told.entry.job}"
    if isinstance(trained := details.get("training"), dict):
        verb, tokens = _trained(trained)
        return f"{verb} {_model(told)}{part}: {tokens}"
    segments, prompts = details["segments"], details.get("prompts", [])
    out, prompt = sum(s[3] for s in segments), sum(prompts)
    own = sum(s[3] for s in segments if told.owner(s[0]) == told.reader)
    finisher = details.get("finisher")
    if not out and finisher is None:
        return f"returned: {one_line(str(why or 'nothing was delivered'))}"
    tokens = f"{prompt} tokens in"
    if details.get("kind") == "embedding":
        tokens += f", {len(prompts)} {'vector' if len(prompts) == 1 else 'vectors'} out"
        free = finisher is not None and told.owner(finisher) == told.reader
    else:
        tokens += f", {out} out"
        free = own == out and (out > 0 or told.owner(finisher or 0) == told.reader)
    where = " on your own machines" if free else ""
    also = f", {own} of them by your own machines" if own and not free else ""
    end = f" ({one_line(told.job_why)})" if told.job_why and told.entry.code is Code.CLOSE else ""
    return f"asked {_model(told)}{where}{part}: {tokens}{also}{', free' if free else ''}{end}"


def _trained(training: Mapping[str, Any]) -> tuple[str, str]:
    """What was done in a part of a fine-tune, and with how much."""
    trained, read = training.get("tokens", 0), training.get("valid_tokens", 0)
    if not trained:
        return "evaluated", f"{read} tokens"
    return "trained", f"{trained} tokens, {read} read to evaluate" if read else f"{trained} tokens"


def _part(entry: Entry) -> str:
    return f", part {entry.id.rpartition('/')[2]} of {entry.job}" if entry.code is Code.SETTLE else ""


def _served(told: Telling) -> str:
    details = told.details
    paid = [p for p in details.get("paid", []) if isinstance(p, dict) and p.get("account") == told.reader]
    whose = f"for {told.name(told.payer)}'s job {worked(told.entry)}"
    if not paid:
        return f"served {_model(told)} {whose}"
    tokens = sum(p.get("tokens", 0) for p in paid)
    if details.get("kind") == "embedding":
        tokens = sum(details.get("prompts", []))
    tries = [p.get("attempt", 0) for p in paid]
    listed = [f"attempt {number} on {told.worker(number)}" for number in tries]
    unproven = dict.fromkeys(told.worker(p.get("attempt", 0)) for p in paid if p.get("held"))
    back = f", held back until {' and '.join(unproven)} {_is(unproven)} proven" if unproven else ""
    did = f"served {tokens} tokens of {_model(told)}"
    if isinstance(trained := details.get("training"), dict):
        verb, amount = _trained(trained)
        did = f"{verb} {_model(told)} with {amount}"
    return f"{did} {whose} ({', '.join(listed)}){back}"


def _is(several: Mapping[str, Any]) -> str:
    return "is" if len(several) == 1 else "are"


def _model(told: Telling) -> str:
    model = told.details.get("model")
    return model if isinstance(model, str) and model else "a model"


# ---- the rest


def _grant(told: Telling) -> str:
    source, to = _ends(told, Bucket.MAIN)
    if told.reader == source:
        return f"granted to {told.name(to)}{told.note}"
    return f"granted by {POOL_NAME}{told.note}"


def _transfer(told: Telling) -> str:
    source, to = _ends(told, Bucket.MAIN)
    if source == to:
        return f"sent to yourself{told.note}"
    if told.reader == source:
        return f"sent to {told.name(to)}{told.note}"
    return f"received from {told.name(source)}{told.note}"


def _line(told: Telling) -> str:
    """Here the amount is in the words: it changes what may be owed, and not the balance beside it."""
    lender, to = told.entry.postings[0], told.entry.postings[1]
    line = f"credit line of {_credits(abs(to.amount))}"
    if told.entry.id.endswith(OPENED):
        line = f"first {line}"
    if told.reader == to.account:
        verb = "lent by" if to.amount > 0 else "taken back by"
        return f"{line} {verb} {told.name(lender.account)}{told.note}"
    if to.amount > 0:
        return f"{line} lent to {told.name(to.account)}{told.note}"
    return f"{line} back from {told.name(to.account)}{told.note}"


def _release(told: Telling) -> str:
    worker = told.known.workers.get(told.entry.id.partition("/")[0], "the worker")
    return f"no longer held back: {worker} is proven"


def _retire(told: Telling) -> str:
    closed = told.entry.id.partition("/")[0]
    if told.reader == closed:
        return f"account closed{told.note}"
    whose = f"account of {told.name(closed)} closed"
    mine = [p for p in told.entry.postings if p.account == told.reader]
    if told.reader == COMMONS:
        return f"{whose}: {'what was left' if _money(mine) >= 0 else 'a debt that nobody answers for'}"
    if _money(mine) < 0:
        return f"{whose}: the debt that you answer for"
    return f"{whose}: the credit line that you lent is back"


_TOLD: Mapping[Code, Callable[[Telling], str]] = {
    Code.HOLD: _hold,
    Code.SETTLE: _work,
    Code.CLOSE: _work,
    Code.GRANT: _grant,
    Code.TRANSFER: _transfer,
    Code.LINE: _line,
    Code.RELEASE: _release,
    Code.RETIRE: _retire,
}


def _ends(told: Telling, bucket: Bucket) -> tuple[str, str]:
    """From whom and to whom, by the entry's first two postings."""
    source, to = (p for p in told.entry.postings[:2] if p.bucket is bucket)
    return source.account, to.account


def _money(postings: list[Posting]) -> int:
    return sum(p.amount for p in postings if p.bucket is not Bucket.CREDIT_LINE)


def _credits(amount: int) -> str:
    unit = "credit" if amount == amounts.MICRO else "credits"
    return f"{amounts.exact(amount).removesuffix('.00')} {unit}"
