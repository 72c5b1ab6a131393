"""`potluck coordinator`: the commands of whoever runs a pool, and the one that invites workers.

Those that run the service live in the package `coordinator`, which needs more than a client has installed.
"""

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from potluck.cli.durations import expires_option, seconds_of
from potluck.cli.lazy import Entry, LazyGroup, lazy_app, load
from potluck.cli.session import Session, single
from potluck.errors import UsageError

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter

SERVICE = Entry("coordinator.cli:app", "Start the coordinator.", extra="coordinator")
USES_MAX = 10_000


def join_token(
    session: Session,
    uses: Annotated[
        int | None,
        typer.Option("--uses", metavar="N", min=1, max=USES_MAX, help="For so many workers; default 1."),
    ] = None,
    expires: Annotated[str | None, expires_option("1d")] = None,
) -> None:
    """Make a token that lets a machine join as a worker of yours, and print what to run there."""
    made = session.pool.join_token(uses=uses, expires_s=seconds_of(expires))
    printer = session.printer
    printer.show(made, lambda: printer.line(made.token))
    printer.note(f"Good until {made.expires_at}. On the machine that shall share:")
    for line in made.commands:
        printer.note(f"  {line}")


join_token_app = single(
    "join-token", join_token, example="potluck coordinator join-token --uses 3 --expires 7d"
)


class CoordinatorGroup(LazyGroup):
    """The client's own command, and all that the service brings."""

    entries = {  # noqa: RUF012 -- declared as ClassVar by the base class
        "join-token": Entry("potluck.cli.coordinator:join_token_app", "Make a token that lets a worker in."),
        "invite": Entry("potluck.cli.invite:invite_app", "Invite a person; prints what to run there."),
        "invites": Entry("potluck.cli.invite:invites_app", "List invitations; take one back."),
    }

    def list_commands(self, ctx: "Context") -> list[str]:
        names = [*self._service_commands(), *super().list_commands(ctx)]
        return names if "start" in names else ["start", *names]

    def get_command(self, ctx: "Context", cmd_name: str) -> "Command | None":
        if cmd_name in self.entries:
            return super().get_command(ctx, cmd_name)
        command: Any = typer.main.get_command(load(SERVICE, "coordinator"))
        if isinstance(command, TyperGroup):
            return command.get_command(ctx, cmd_name)
        return command if cmd_name == command.name else None

    def format_commands(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        helps = {name: entry.help for name, entry in self.entries.items()}
        helps |= {name: command.get_short_help_str(90) for name, command in self._service_commands().items()}
        helps.setdefault("start", f"{SERVICE.help} Needs `pip install 'potluck[{SERVICE.extra}]'`.")
        width = max(map(len, helps))
        with formatter.section("Commands"):
            formatter.write_dl([(name.ljust(width), helps[name]) for name in self.list_commands(ctx)])

    def _service_commands(self) -> dict[str, Any]:
        """Those of the service, or none where its packages are missing."""
        with contextlib.suppress(UsageError):
            command: Any = typer.main.get_command(load(SERVICE, "coordinator"))
            return dict(command.commands) if isinstance(command, TyperGroup) else {command.name: command}
        return {}


app = lazy_app(CoordinatorGroup, "Start a pool; invite workers to it.")
