"""`potluck chat`: one question, or a conversation."""

import sys
from typing import Annotated, Any, Literal

import typer

from potluck.cli import asking
from potluck.cli.conversation import Conversation, converse
from potluck.cli.session import Session, single

WAIT_S = 600.0
POOL_WAIT_S = 60.0  # the pool waits so long by itself, and is asked again after it


def chat(
    session: Session,
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask; - reads standard input. Without it: a conversation.")
    ] = None,
    model: asking.ModelOption = None,
    system: asking.SystemOption = None,
    max_tokens: asking.MaxTokensOption = None,
    temperature: asking.TemperatureOption = None,
    seed: asking.SeedOption = None,
    workers: asking.WorkersOption = None,
    reasoning_effort: asking.EffortOption = None,
    reasoning: Annotated[
        Literal["auto", "show", "hide"],
        typer.Option("--reasoning", help="What a model thinks, on stderr; auto: in a terminal."),
    ] = "auto",
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0.0, help="How long to wait for a worker.")
    ] = WAIT_S,
    interactive: Annotated[
        bool, typer.Option("-i", "--interactive", help="Converse also where standard input is no terminal.")
    ] = False,
) -> None:
    """Ask a model and see the answer as it is written; without PROMPT, converse.

    Standard output has the answer alone; what a reasoning model thinks before it is shown dimmed on stderr.
    In a conversation /help lists what else can be typed, and Ctrl-C stops an answer.
    """
    asked: dict[str, Any] = asking.parameters(
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        workers=workers,
        reasoning_effort=reasoning_effort,
    )
    if wait < POOL_WAIT_S:
        asked["potluck"] = {**asked.get("potluck", {}), "wait_s": max(1.0, wait)}
    if prompt is None and not interactive and not sys.stdin.isatty():
        prompt = "-"  # `potluck chat < file`
    text = asking.text_of(prompt) if prompt is not None else None
    conversation = Conversation(session, session.pool.model(model, "chat"), system, asked, wait, reasoning)
    if text is None:
        converse(conversation)
    else:
        conversation.ask(text)


app = single("chat", chat, example='potluck chat "Why is the sky blue?"')
