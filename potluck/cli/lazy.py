"""Command groups whose members are imported when they are called, not when they are listed.

`potluck --help` answers from a table of names and sentences; the module behind a name is loaded by its use.
"""

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import typer
from typer.core import TyperGroup

from potluck.errors import UsageError

if TYPE_CHECKING:
    # typer carries its own copy of click and gives no public name to these two.
    from typer._click import Command, Context, HelpFormatter

OWN_PACKAGES = frozenset({"potluck", "coordinator", "worker"})


@dataclass(frozen=True, slots=True)
class Entry:
    """`target` is "module:attribute" of a typer app."""

    target: str
    help: str
    section: str = "Commands"
    extra: str = ""  # what to install where the module's own needs are missing


class LazyGroup(TyperGroup):
    """A group that knows its commands by a table; subclasses set `entries`."""

    entries: ClassVar[dict[str, Entry]] = {}

    def list_commands(self, ctx: "Context") -> list[str]:  # noqa: ARG002 -- click's signature
        return list(self.entries)

    def get_command(self, ctx: "Context", cmd_name: str) -> "Command | None":  # noqa: ARG002 -- as above
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        command: Any = typer.main.get_command(load(entry, cmd_name))
        command.name = cmd_name
        found: Command | None = command
        return found

    def resolve_command(
        self, ctx: "Context", args: list[str]
    ) -> tuple[str | None, "Command | None", list[str]]:
        name = args[0]
        known = [] if name in self.entries else self.list_commands(ctx)
        if name not in self.entries and name not in known and not name.startswith("-"):
            close = difflib.get_close_matches(name, known)
            hint = f" Did you mean {' or '.join(f'`{c}`' for c in close)}?" if close else ""
            ctx.fail(f"There is no command `{name}`.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: "Context", formatter: "HelpFormatter") -> None:  # noqa: ARG002 -- as above
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, entry in self.entries.items():
            sections.setdefault(entry.section, []).append((name, entry.help))
        width = max(map(len, self.entries), default=0)
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])


def load(entry: Entry, name: str) -> typer.Typer:
    """The typer app behind the entry. Raises UsageError with what to install if something is not there."""
    module_name, attribute = entry.target.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not entry.extra or (missing in OWN_PACKAGES and error.name != module_name):
            raise
        raise UsageError(
            f"`potluck {name}` needs packages that are not installed here ({error.name}). Install them with"
            f" `pip install 'potluck[{entry.extra}]'`.",
            code="extra_missing",
        ) from None
    found: typer.Typer = getattr(module, attribute)
    return found


def lazy_app(group: type[LazyGroup], help_text: str) -> typer.Typer:
    """A typer app for a lazy group; whoever calls it without a command sees its help."""
    app = typer.Typer(
        cls=group,
        help=help_text,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_nothing)
    return app


def _nothing() -> None:
    """A group does nothing of its own."""
