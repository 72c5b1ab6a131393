"""What things cost, worked out: the examples of docs/credits.md, by the pool's own functions and book.

A chat, the same chat when its worker dies, a batch, a fine-tune, and the prices of a few models. Every entry
is posted into a book of four accounts, which refuses what does not balance.

    python benchmarks/prices.py [--write docs]
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from coordinator.core import entries
from coordinator.core.jobs import AccountId, Attempt, Job, JobId, Kind, MemberId, WorkerId
from coordinator.core.ledger import COMMONS, Account, Book, Bucket, Entry, Posted
from coordinator.core.pricing import (
    UNITS_PER_FLOP,
    Demand,
    Segment,
    Shape,
    Tariff,
    Training,
    charge_units,
    output_units,
    payments,
    prompt_units,
    quote,
)
from coordinator.finetunes.check import ROUNDING
from potluck import lora, pricing
from potluck.catalogue import Catalogue, ModelEntry
from potluck.credits import MICRO, aligned
from potluck.shape import shape_of_config

MODEL = "smollm2-135m-instruct"
TARIFF = Tariff()
ASKER, OWNERS = "carol", ("bob", "alice")
PLACES = (
    (AccountId(ASKER), Bucket.MAIN),
    (AccountId(ASKER), Bucket.RESERVED),
    *((AccountId(name), Bucket.MAIN) for name in OWNERS),
    (COMMONS, Bucket.MAIN),
)
LINE = 1_000 * MICRO
PROMPT_TOKENS, MAX_TOKENS, OUTPUT_TOKENS = 36, 200, 135  # "Why is the sky blue?", as a pool counted it
DELIVERED = 60  # tokens that came before the worker died
LINES = ((40, 50, 31), (44, 50, 50), (38, 50, 0))  # of a batch: prompt, max_tokens, output
EXAMPLES, EXAMPLE_TOKENS, EPOCHS, RANK = 200, 125, 3, 16
SEGMENTS = (("bob", 260), ("alice", 240), ("bob", 100))  # examples trained, of all epochs
MFLOP = 1_000_000

# From the config.json of each on Hugging Face: Qwen/Qwen3-8B, Qwen/Qwen3-30B-A3B, deepseek-ai/DeepSeek-V3.
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen3-8B": {
        "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 151936,
    },
    "DeepSeek-V3": {
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
        "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
    },
}  # fmt: skip


@dataclass(slots=True)
class Ledger:
    """A book of carol, bob, alice and the commons; each entry becomes a line, each place a column."""

    book: Book = field(default_factory=Book)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in (ASKER, *OWNERS, COMMONS):
            self.book.accounts[AccountId(name)] = Account(AccountId(name), LINE)
        named = (f"{name}, {bucket}" if name == ASKER else name for name, bucket in PLACES)
        self.lines += [f"| entry | {' | '.join(named)} | sum |", f"|---|{'--:|' * (len(PLACES) + 1)}"]

    def post(self, entry: Entry) -> None:
        assert self.book.post(entry) is Posted.CREATED
        moved = Counter({(posting.account, posting.bucket): posting.amount for posting in entry.postings})
        assert len(moved) == len(entry.postings), "one amount in each place"
        assert moved.keys() <= set(PLACES), "all of it is shown"
        cells = (aligned(moved[place]) if place in moved else "" for place in PLACES)
        self.lines.append(f"| `{entry.id}` | {' | '.join(cells)} | {aligned(moved.total())} |")

    def balances(self) -> str:
        """Of all, which are zero together."""
        rows = [(account.id, account.balance) for account in self.book.accounts.values()]
        assert sum(balance for _, balance in rows) == self.book.total() == 0
        said = ", ".join(f"{name} {aligned(balance)}" for name, balance in rows)
        return f"Balances after it: {said}; together {aligned(self.book.total())}."


def entry_of(name: str = MODEL) -> ModelEntry:
    entry = Catalogue.builtin().get(name)
    assert entry is not None
    return entry


def shape_of(entry: ModelEntry) -> Shape:
    of = entry.shape
    return Shape(of.active_parameters, of.head_parameters, of.attention)


SHAPE = shape_of(entry_of())


def job_of(name: str, wanted: Demand, hold: int) -> Job:
    return Job(
        id=JobId(name),
        kind=Kind(wanted.kind),
        model=MODEL,
        member=MemberId(ASKER),
        account=AccountId(ASKER),
        created_at=0.0,
        quote=hold,
        hold=hold,
        prompt_tokens=wanted.prompt_tokens,
        max_tokens=wanted.max_tokens,
    )


def earned(
    wanted: Demand, segments: Sequence[Segment], owners: Sequence[str], finisher: int | None
) -> list[entries.Payment]:
    """What the attempts 1, 2, ... of workers of these owners are paid."""
    attempts = [
        Attempt(number=number, worker=WorkerId(f"{owner}-pc"), owner=AccountId(owner), assigned_at=0.0)
        for number, owner in enumerate(owners, start=1)
    ]
    units = charge_units(wanted, TARIFF, segments, finisher)
    return payments(units, attempts, AccountId(ASKER), TARIFF)


def mflop(units: int) -> str:
    """Units of a price as MFLOP, which are microcredits, with three decimals."""
    return f"{float(Fraction(units, UNITS_PER_FLOP * MFLOP)):,.3f}"


def chat() -> str:
    """One worker, start to end."""
    wanted = Demand(Kind.CHAT, SHAPE, (PROMPT_TOKENS,), MAX_TOKENS)
    prompt, output = prompt_units(wanted, TARIFF), output_units(wanted, 0, OUTPUT_TOKENS)
    worst = quote(wanted, TARIFF)
    job, books = job_of("job", wanted, worst), Ledger()
    books.post(entries.hold(job))
    books.post(entries.close(job, earned(wanted, [Segment(1, 0, 0, OUTPUT_TOKENS)], ["bob"], 1)))
    return "\n".join([
        "| what | MFLOP |",
        "|---|--:|",
        f"| the quote: {PROMPT_TOKENS} tokens in, {MAX_TOKENS} out at the most | {worst:,} |",
        f"| the prompt, {PROMPT_TOKENS} tokens | {mflop(prompt)} |",
        f"| the answer, {OUTPUT_TOKENS} tokens | {mflop(output)} |",
        f"| the charge, rounded up once | {pricing.microcredits(prompt + output):,} |",
        "",
        *books.lines,
        "",
        books.balances(),
    ])  # fmt: skip


def failover() -> str:
    """The same answer from two workers."""
    wanted = Demand(Kind.CHAT, SHAPE, (PROMPT_TOKENS,), MAX_TOKENS)
    segments = [Segment(1, 0, 0, DELIVERED), Segment(2, 0, DELIVERED, OUTPUT_TOKENS - DELIVERED)]
    job, books = job_of("job", wanted, quote(wanted, TARIFF)), Ledger()
    books.post(entries.hold(job))
    del books.lines[2:]  # as above
    books.post(entries.close(job, earned(wanted, segments, ["bob", "alice"], 2)))
    return "\n".join([*books.lines, "", books.balances()])


def batch() -> str:
    """Three lines; the last one fails and costs nothing."""
    demands = [Demand(Kind.CHAT, SHAPE, (prompt,), most) for prompt, most, _ in LINES]
    quotes = [quote(wanted, TARIFF) for wanted in demands]
    whole = replace(job_of("batch", demands[0], sum(quotes)), kind=Kind.BATCH)
    books, rows = (
        Ledger(),
        ["| line | tokens in | out at the most | quote | out | charge |", "|--:|--:|--:|--:|--:|--:|"],
    )
    books.post(entries.hold(whole))
    for part, (wanted, worst, (prompt, most, tokens)) in enumerate(
        zip(demands, quotes, LINES, strict=True), 1
    ):
        paid = earned(wanted, [Segment(1, 0, 0, tokens)], [OWNERS[(part + 1) % 2]], None)
        charge = sum(payment.amount for payment in paid)
        rows.append(f"| {part} | {prompt} | {most} | {aligned(worst)} | {tokens} | {aligned(charge)} |")
        if charge:
            books.post(entries.settle(whole, part, paid))
            whole = replace(whole, settled=whole.settled + charge, settlements=whole.settlements + 1)
    books.post(entries.close(whole, []))
    return "\n".join([*rows, "", *books.lines, "", books.balances()])


def training(parameters: int, examples: int) -> Training:
    return Training("sft", parameters, examples * EXAMPLE_TOKENS, examples * EXAMPLE_TOKENS**2)


def finetune() -> str:
    """Segments of two workers, one after the other."""
    entry = entry_of()
    parameters = lora.parameters(lora.shapes(entry.linears, entry.shape.layers, RANK))

    def wanted(examples: int) -> Demand:
        return Demand(Kind.FINETUNE, SHAPE, (EXAMPLE_TOKENS,), training=training(parameters, examples))

    every = wanted(EXAMPLES * EPOCHS)
    exactly = quote(every, TARIFF)
    whole, books = job_of("tune", every, exactly + ROUNDING), Ledger()
    tokens = EXAMPLES * EXAMPLE_TOKENS
    rows = [
        "| what | |",
        "|---|--:|",
        f"| tokens of one epoch: {EXAMPLES} examples of {EXAMPLE_TOKENS} | {tokens:,} |",
        f"| the adapter of rank {RANK} | {parameters:,} numbers |",
        f"| {EPOCHS} epochs | {aligned(exactly)} credits |",
        f"| the quote: and {aligned(ROUNDING)} for the rounding of parts | {aligned(whole.hold)} credits |",
        "",
    ]
    books.post(entries.hold(whole))
    for part, (owner, examples) in enumerate(SEGMENTS, start=1):
        paid = earned(wanted(examples), [], [owner], 1)
        books.post(entries.settle(whole, part, paid))
        whole = replace(whole, settled=whole.settled + sum(payment.amount for payment in paid))
    books.post(entries.close(whole, []))
    assert sum(examples for _, examples in SEGMENTS) == EXAMPLES * EPOCHS
    return "\n".join([*rows, *books.lines, "", books.balances()])


def models() -> str:
    """What a prompt and an answer of 1,000 tokens cost, as the pool's list of models says it."""
    shapes = {MODEL: SHAPE}
    for name, config in CONFIGS.items():
        of = shape_of_config(config)
        shapes[name] = Shape(of.active_parameters, of.head_parameters, of.attention)
    rows = [
        "| model | parameters that multiply | 1,000 tokens in | 1,000 tokens out | 1,000 tokens embedded |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, shape in shapes.items():
        asked = [
            Demand(Kind.CHAT, shape, (1_000,)),
            Demand(Kind.CHAT, shape, (0,), 1_000),
            Demand(Kind.EMBEDDING, shape, (1_000,)),
        ]
        prices = " | ".join(f"{quote(wanted, TARIFF) / MICRO:,.2f}" for wanted in asked)
        rows.append(f"| {name} | {shape.active_parameters / 1e9:.2f} billion | {prices} |")
    return "\n".join(rows)


EXAMPLES_OF = {"chat": chat, "failover": failover, "batch": batch, "finetune": finetune, "models": models}
END = "<!-- end -->"


def written(page: str) -> str:
    """The page with each example between its marks made anew."""
    for name, made in EXAMPLES_OF.items():
        begin = f"<!-- made by benchmarks/prices.py: {name} -->"
        before, mark, rest = page.partition(begin)
        assert mark, f"the page has no {begin}"
        page = f"{before}{begin}\n{made()}\n{END}{rest.partition(END)[2]}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", type=Path, metavar="DIR", help="bring DIR/credits.md up to date")
    options = parser.parse_args()
    for name, made in EXAMPLES_OF.items():
        print(f"{name}\n\n{made()}\n")
    if options.write is not None:
        page = options.write / "credits.md"
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
