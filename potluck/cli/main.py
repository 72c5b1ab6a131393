"""The `potluck` command's root: its table of commands, `--version`, and the last word about errors."""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer.core import TyperGroup

from potluck.cli.lazy import Entry, LazyGroup
from potluck.cli.printing import Output, Printer
from potluck.errors import ExitCode, PotluckError, UsageError

DISK_REFUSES = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
_TRY, _ASK, _YOU, _SHARE, _RUN = "Try it", "Ask", "You", "Share a machine", "Run a pool"


class Root(LazyGroup):
    entries = {  # noqa: RUF012 -- declared as ClassVar by the base class
        "demo": Entry("potluck.cli.demo:app", "A whole pool on this machine, on a real small model.", _TRY),
        "chat": Entry("potluck.cli.chat:app", "Ask a model; a conversation without PROMPT.", _ASK),
        "submit": Entry("potluck.cli.submit:app", "Leave a job with the pool and get its id.", _ASK),
        "jobs": Entry(
            "potluck.cli.jobs:app", "List, show, watch, pause and cancel jobs; fetch results.", _ASK
        ),
        "files": Entry("potluck.cli.files:app", "Upload files to train on; fetch results.", _ASK),
        "quote": Entry("potluck.cli.quote:app", "The most that a request can cost.", _ASK),
        "models": Entry("potluck.cli.models:app", "The models that this pool serves; your tuned ones.", _ASK),
        "login": Entry("potluck.cli.login:app", "Save a pool's address and your key for it.", _YOU),
        "whoami": Entry("potluck.cli.whoami:app", "Who you are, and in which pool.", _YOU),
        "balance": Entry("potluck.cli.balance:app", "What you gave minus what you took.", _YOU),
        "statement": Entry("potluck.cli.statement:app", "What moved your balance, and why.", _YOU),
        "send": Entry("potluck.cli.send:app", "Send credits to another member.", _YOU),
        "ledger": Entry("potluck.cli.ledger:app", "Export the whole ledger; verify one offline.", _YOU),
        "keys": Entry("potluck.cli.keys:app", "List, create and revoke API keys.", _YOU),
        "limits": Entry("potluck.cli.limits:app", "What you may use, what is used, when it renews.", _YOU),
        "config": Entry("potluck.cli.config:app", "Every setting, and where it comes from.", _YOU),
        "doctor": Entry("potluck.cli.doctor:app", "Does all of it work, and what to do if not.", _YOU),
        "worker": Entry("worker.cli:app", "Share this machine: join, start, pause.", _SHARE, extra="worker"),
        "workers": Entry(
            "potluck.cli.workers:app", "The pool's machines; pause, drain, revoke them.", _SHARE
        ),
        "coordinator": Entry("potluck.cli.coordinator:app", "Start a pool; invite workers to it.", _RUN),
        "members": Entry("potluck.cli.members:app", "Members and what they may (for admins).", _RUN),
    }


app = typer.Typer(
    cls=Root,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example:  potluck demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        from potluck.version import version

        print(f"potluck {version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Everybody brings a GPU, everybody eats: chat, embeddings and more on the machines of a group.

    Settings come from a flag, else a POTLUCK_* variable, else client.toml, else a default.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with the exit code of the design."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an answer may hold what this terminal cannot show
    sys.exit(run(given))


def run(arguments: list[str]) -> int:
    """The exit code. Whatever happens, nobody sees a traceback unless POTLUCK_DEBUG is set."""
    printer = Printer(asked_output(arguments))
    try:
        command = typer.main.get_command(app)
        assert isinstance(command, TyperGroup)
        code = command.main(arguments, prog_name="potluck", standalone_mode=False)
        sys.stdout.flush()
    except PotluckError as error:
        printer.error(error)
        return int(error.exit_code)
    except typer.TyperException as error:
        return _usage(error, printer)
    except typer.Abort:
        return int(ExitCode.INTERRUPTED)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has gone; the interpreter must not complain about it while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.ERROR)
    except Exception as error:  # the process border: a sentence for people, a trace for those who ask
        if os.environ.get("POTLUCK_DEBUG"):
            raise
        printer.error(_unexpected(error))
        return int(ExitCode.ERROR)
    return code if isinstance(code, int) else 0


def _unexpected(error: Exception) -> PotluckError:
    """A disk that is full or may not be written to is the owner's to mend; anything else is ours."""
    if isinstance(error, OSError) and error.errno in DISK_REFUSES and error.filename:
        message = (
            f"{error.filename} cannot be used: {error.strerror}. Mend that, or name another folder:"
            " POTLUCK_HOME for all, POTLUCK_MODEL_CACHE for models."
        )
        return PotluckError(message, code="disk_refuses")
    message = (
        f"Something went wrong that should not have: {type(error).__name__}: {error}. Run it again with"
        " POTLUCK_DEBUG=1 and report what it prints."
    )
    return PotluckError(message, code="internal")


def asked_output(arguments: Sequence[str]) -> Output:
    """How to print an error that comes before the options are parsed."""
    wanted = os.environ.get("POTLUCK_OUTPUT", "")
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if argument == "--":
            break
        if name == "--output" and value:
            wanted = value
        elif argument in {"-o", "--output"}:
            wanted = next(iter(arguments[index + 1 : index + 2]), "")
        elif argument.startswith("-o") and not argument.startswith("--"):
            wanted = argument[2:].removeprefix("=")
    return Output(wanted) if wanted in set(Output) else Output.TEXT


def _usage(error: typer.TyperException, printer: Printer) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())  # the help: asked for by saying nothing
        return int(ExitCode.USAGE)
    context = getattr(error, "ctx", None)
    hint = f" `{context.command_path} --help` shows how." if context is not None else ""
    printer.error(UsageError(f"{error.format_message().rstrip('.')}.{hint}".replace("?.", "?")))
    return error.exit_code
