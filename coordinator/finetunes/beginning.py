"""What comes before the first part: may its member begin anything, what is asked of the pool and told."""

from coordinator.core.jobs import Kind
from coordinator.finetunes.check import Checked
from coordinator.finetunes.finetune import Finetune
from coordinator.finetunes.journal import Journal
from coordinator.parts import Order
from coordinator.records import ApiKey, Member, MemberState
from coordinator.refusal import Refusal
from coordinator.store import Store


async def keep_lengths(store: Store, finetune_id: str, found: Checked) -> None:
    """What the files were counted as: by that it is paid, whatever is learned of the tokenizer later."""
    validation = None if found.validation is None else found.validation.to_bytes()
    await store.put_finetune_lengths(finetune_id, found.training.to_bytes(), validation)


def refuse_frozen(member: Member | None) -> None:
    """As it is just before the hold. Raises Refusal 403."""
    if member is None or member.state is not MemberState.ACTIVE:
        message = "The account is frozen or closed: nothing new begins."
        raise Refusal(403, "account_frozen", message, type="permission_error")


def order_of(finetune: Finetune, member: Member, key: ApiKey, found: Checked) -> Order:
    """The whole that is to be opened."""
    return Order(
        id=finetune.job,
        kind=Kind.FINETUNE,
        model=finetune.model,
        member=member,
        key=key,
        worst=found.worst,
        prompt_tokens=found.plan.tokens * found.plan.epochs,
        max_tokens=0,
        expires_at=finetune.expires_at,
        workers=finetune.wanted.only,
    )


def tell(journal: Journal, found: Checked) -> None:
    plan = found.plan
    journal.say(
        f"{plan.examples} examples with {plan.tokens:,} tokens, {plan.epochs} epochs, {plan.steps} steps."
    )
    if found.cut:
        message = f"{found.cut} examples are longer than {plan.sequence_tokens:,} tokens and are cut."
        journal.say(message, level="warn")
