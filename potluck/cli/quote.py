"""`potluck quote`."""

from enum import StrEnum
from typing import Annotated

import typer

from potluck.cli import asking
from potluck.cli.session import Session, single


class QuotedKind(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


def quote(
    session: Session,
    prompt: Annotated[str, typer.Argument(help="The text; - reads standard input.")],
    kind: Annotated[QuotedKind, typer.Option("--kind", help="What for.")] = QuotedKind.CHAT,
    model: asking.ModelOption = None,
    system: asking.SystemOption = None,
    max_tokens: asking.MaxTokensOption = None,
) -> None:
    """The most that a request can cost; what it does cost is known at its end and never more."""
    text = asking.text_of(prompt)
    request = {"model": session.pool.model(model, kind.value)}
    asked = asking.parameters(max_tokens=max_tokens)
    match kind:
        case QuotedKind.CHAT:
            asked["messages"] = asking.messages(text, system)
        case QuotedKind.COMPLETION:
            asked["prompt"] = text
        case QuotedKind.EMBEDDING:
            asked["input"] = [text]
    found, printer = session.pool.quote(kind.value, {**request, **asked}), session.printer
    tokens = f"{found.prompt_tokens} tokens in"
    if kind is not QuotedKind.EMBEDDING:
        tokens += f", up to {found.max_tokens} out"
    line = f"At most {printer.amount(found.quote)} {printer.unit}: {tokens}, on {found.model}."
    printer.show(found, lambda: printer.line(line))


app = single("quote", quote, example='potluck quote "Why is the sky blue?" --max-tokens 200')
