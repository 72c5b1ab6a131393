"""A conversation in the terminal: questions, answers as they are written, and what each of them cost."""

import contextlib
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from potluck.answers import Answer
from potluck.cli.printing import Output, printable
from potluck.cli.progress import Progress
from potluck.cli.session import Session
from potluck.errors import PotluckError, Unavailable, UsageError

RETRY_S_MAX = 10.0
DIM, PLAIN = "\x1b[2m", "\x1b[0m"  # ECMA-48, select graphic rendition
STOPPED_S_MAX = 2.0  # for the charge of an answer that was stopped
HISTORY_MESSAGES_MAX = 1_000
HELP = """\
/model         show the model and those to choose from
/model NAME    ask another model from now on
/reset         forget the conversation so far
/quit          leave (also Ctrl-D)
Ctrl-C         stop the answer; what was written so far is paid and kept"""


@dataclass(slots=True)
class Thoughts:
    """What a reasoning model thinks, dimmed and on stderr: stdout has the answer alone."""

    wanted: str  # auto | show | hide
    _last: str = ""

    def write(self, text: str) -> None:
        terminal = sys.stderr.isatty()
        if text and (self.wanted == "show" or (self.wanted == "auto" and terminal)):
            self._last = text
            sys.stderr.write(f"{DIM}{printable(text)}{PLAIN}" if terminal else printable(text))
            sys.stderr.flush()

    def end(self) -> None:
        """The answer begins: on a line of its own, below an empty one."""
        if self._last:
            sys.stderr.write("\n" if self._last.endswith("\n") else "\n\n")
            sys.stderr.flush()
            self._last = ""


@dataclass(slots=True)
class Conversation:
    """`messages` grow by each question and its answer."""

    session: Session
    model: str
    system: str | None
    parameters: dict[str, Any]
    wait_s: float
    reasoning: str = "auto"  # what a model thinks: show | hide; auto: show in a terminal
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str) -> Answer:
        """Ask, print the answer as it comes, and remember both.

        Raises PotluckError, and KeyboardInterrupt after it has kept what came until then.
        """
        if len(self.messages) >= HISTORY_MESSAGES_MAX:
            raise UsageError(
                f"This conversation has {len(self.messages)} messages, its limit. /reset starts anew."
            )
        asked = [*self.messages, {"role": "user", "content": text}]
        deadline = time.monotonic() + self.wait_s
        while True:
            try:
                return self._stream(asked)
            except Unavailable as error:
                self._wait(error, deadline)

    def _stream(self, asked: list[dict[str, str]]) -> Answer:
        printer, pool = self.session.printer, self.session.pool
        stream = pool.stream(asked, model=self.model, **self.parameters)
        progress = Progress(pool.url, self.session.connection.secret, self.model, shown=printer.text)
        written = False
        thoughts = Thoughts(self.reasoning)
        try:
            with progress, stream as pieces:
                for piece in pieces:
                    progress.stop()
                    written = True
                    if printer.text:
                        thoughts.write(piece.reasoning if piece.choice == 0 else "")
                    if piece.text:
                        thoughts.end()
                        self._write(piece.text)
                    if printer.output is Output.JSONL:
                        printer.json(piece)
        except BaseException:  # also Ctrl-C: the line must end, and what was written is kept
            thoughts.end()
            if written:
                self._end_line(stream.text)
                self.messages = [*asked, {"role": "assistant", "content": stream.text}]
                self._stopped(stream.job_id)
            raise
        thoughts.end()
        answer = stream.answer
        self._end_line(stream.text)
        self.messages = [*asked, {"role": "assistant", "content": stream.text}]
        if not printer.text:
            printer.json(
                {**_shape(answer), "text": answer.text} if printer.output is Output.JSON else _shape(answer)
            )
        printer.note(self._cost(answer))
        return answer

    def _write(self, text: str) -> None:
        if self.session.printer.text:
            # Into a file goes what the model wrote; a terminal must not be steered by it.
            sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
            sys.stdout.flush()

    def _end_line(self, text: str) -> None:
        if not text.endswith("\n"):
            self._write("\n")

    def _cost(self, answer: Answer) -> str:
        printer, usage = self.session.printer, answer.usage
        if usage is None:
            return f"[{answer.model}]"
        tokens = f"{usage.prompt_tokens} tokens in, {usage.completion_tokens} out"
        if usage.completion_tokens_details is not None:
            tokens += f", {usage.completion_tokens_details.reasoning_tokens} of them reasoning"
        cut = ", cut at its limit" if answer.finish_reason == "length" else ""
        return f"[{tokens}{cut} · {printer.amount(usage.charge)} {printer.unit} · {answer.model}]"

    def _stopped(self, job_id: str | None) -> None:
        """What the part that was written cost; the coordinator knows it a moment after the line is cut."""
        printer = self.session.printer
        with contextlib.suppress(PotluckError):
            *_, job = self.session.pool.follow(job_id or "", timeout_s=STOPPED_S_MAX)
            if job.charge is not None:
                printer.note(f"[{printer.amount(job.charge)} {printer.unit} for what was written]")
                return
        printer.note("[what was written so far is paid]")

    def _wait(self, error: Unavailable, deadline: float) -> None:
        """Before the next try while the model loads; raises the error when there is no point in waiting."""
        pause_s = min(RETRY_S_MAX, error.retry_after_s or 1.0)
        if error.retry_after_s is None or time.monotonic() + pause_s > deadline:
            raise error
        self.session.printer.note(f"{error.message} Trying again in {pause_s:.0f} s.")
        time.sleep(pause_s)


def converse(conversation: Conversation) -> None:
    """Questions from standard input until /quit or its end."""
    printer = conversation.session.printer
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 -- its import alone gives `input` a line editor and a history
    printer.note(f"{conversation.model} at {conversation.session.pool.url}. /help lists what can be typed.")
    warned = False
    while True:
        try:
            text = input(">>> " if sys.stdin.isatty() and printer.text else "")
        except EOFError:
            printer.note("")
            return
        except KeyboardInterrupt:
            if warned:
                raise
            warned = True
            printer.note("\nCtrl-D or /quit leaves; so does a second Ctrl-C.")
            continue
        warned = False
        if text.strip() == "/quit":
            return
        if text.strip():
            _turn(conversation, text.strip())


def _turn(conversation: Conversation, text: str) -> None:
    """One line; whatever goes wrong is said, and the conversation goes on."""
    printer = conversation.session.printer
    try:
        if text.startswith("/"):
            _command(conversation, text)
        else:
            conversation.ask(text)
    except KeyboardInterrupt:
        printer.note("[stopped]")
    except PotluckError as error:
        printer.error(error)


def _command(conversation: Conversation, text: str) -> None:
    name, _, argument = text.partition(" ")
    printer = conversation.session.printer
    if name == "/reset":
        conversation.reset()
        printer.note("The conversation starts anew.")
    elif name == "/help":
        printer.note(HELP)
    elif name == "/model":
        _choose(conversation, argument.strip())
    else:
        raise UsageError(f"There is no {name} here. /help lists what there is.")


def _choose(conversation: Conversation, wanted: str) -> None:
    printer = conversation.session.printer
    models = [model for model in conversation.session.pool.models() if "chat" in model.kinds]
    if wanted:
        found = [model for model in models if wanted in {model.name, *model.aliases}]
        if not found:
            raise UsageError(f"There is no model {wanted!r} for chat here. /model lists those there are.")
        conversation.model = found[0].name
    printer.note(f"Asking {conversation.model}.")
    if not wanted:
        for model in models:
            printer.note(f"  {model.name}  ({model.state})")


def _shape(answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.id,
        "model": answer.model,
        "choices": answer.choices,
        "usage": answer.usage,
        "job_id": answer.job_id,
    }
