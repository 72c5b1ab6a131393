"""What all commands share: the options `-o --micro --profile --url --key`, the pool, and how errors end."""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, Self

import typer

from potluck.cli.printing import Output, Printer
from potluck.client import Connection, resolve
from potluck.errors import PotluckError, UsageError

if TYPE_CHECKING:
    from potluck.pool import Pool

Parameters = ParamSpec("Parameters")
COMMON = ("output", "micro", "profile", "url", "key")

OutputOption = Annotated[
    Output | None, typer.Option("-o", "--output", help="How to print the result.", show_choices=True)
]
MicroOption = Annotated[bool, typer.Option("--micro", help="Print amounts as integer microcredits.")]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", metavar="NAME", help="Which saved login to use.")
]
UrlOption = Annotated[str | None, typer.Option("--url", metavar="URL", help="The pool's address.")]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY|file:PATH", help="The API key; file:PATH keeps it out of `ps`."),
]


def _common(*names: str) -> list[inspect.Parameter]:
    options: Mapping[str, tuple[Any, Any]] = {
        "output": (OutputOption, None),
        "micro": (MicroOption, False),
        "profile": (ProfileOption, None),
        "url": (UrlOption, None),
        "key": (KeyOption, None),
    }
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=options[name][0], default=options[name][1]
        )
        for name in names
    ]


class Session:
    """One run of one command. The pool is connected when it is first asked for, and closed at the end."""

    def __init__(self, connection: Connection, printer: Printer, retries_max: int = 0) -> None:
        self.connection, self.printer = connection, printer
        self._pool: Pool | None = None
        self._retries_max = retries_max

    @classmethod
    def open(cls, flags: Mapping[str, Any]) -> Self:
        """Raises PotluckError for a profile, an output or a file that makes no sense."""
        named = {name: flags.get(name) for name in ("profile", "url", "key", "model")}
        output = flags.get("output")
        connection = resolve({**named, "output": str(output) if output else None})
        return cls(connection, Printer(_output(connection), bool(flags.get("micro"))))

    @property
    def pool(self) -> "Pool":
        """Raises NotLoggedIn if there is no key."""
        if self._pool is None:
            from potluck.pool import Pool

            found = self.connection
            self._pool = Pool(
                found.address, found.secret, model=found.model.value, retries_max=self._retries_max
            )
        return self._pool

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.close()


def group(help_text: str) -> typer.Typer:
    """A typer app for a noun with several verbs."""
    app = _app(help_text)
    app.callback()(lambda: None)
    return app


def group_with(
    name: str, function: Callable[Concatenate[Session, ...], None], *, example: str
) -> typer.Typer:
    """A typer app for a noun that does something of its own where no verb is given."""
    app = _app(None)
    alone = with_options(function, *COMMON)

    def begin(context: typer.Context, **values: Any) -> None:
        if context.invoked_subcommand is None:
            alone(**values)
        elif any(values.values()):
            raise typer.BadParameter(f"options of {name} {context.invoked_subcommand} stand behind it")

    given = inspect.signature(alone).parameters
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    begin.__signature__ = inspect.Signature([context, *given.values()])  # type: ignore[attr-defined]  # PEP 362
    begin.__annotations__ = {"context": typer.Context, **alone.__annotations__}
    app.callback(invoke_without_command=True, help=function.__doc__, epilog=f"Example:  {example}")(begin)
    return app


def single(name: str, function: Callable[Concatenate[Session, ...], None], *, example: str) -> typer.Typer:
    """A typer app that is one command."""
    app = _app(None)
    command(app, name, example=example)(function)
    return app


def command(
    app: typer.Typer, name: str, *, example: str
) -> Callable[[Callable[Concatenate[Session, Parameters], None]], Callable[..., None]]:
    """Register the function as a command; it gets a Session first, the command line gives the rest."""

    def register(function: Callable[Concatenate[Session, Parameters], None]) -> Callable[..., None]:
        wrapped = with_options(function, *COMMON)
        app.command(name, epilog=f"Example:  {example}", context_settings=_HELP)(wrapped)
        return wrapped

    return register


def with_options(
    function: Callable[Concatenate[Session, Parameters], None], *names: str
) -> Callable[..., None]:
    """The function as typer shall see it: without the session, with the options that all commands share."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    parameters = [*own, *_common(*names)]

    @functools.wraps(function)
    def run(**values: Any) -> None:
        flags = {name: values.pop(name) for name in names}
        printer = Printer(flags.get("output") or Output.TEXT)
        try:
            with Session.open(flags) as session:
                printer = session.printer
                function(session, **values)  # type: ignore[call-arg]  # typer calls by keyword
        except PotluckError as error:
            printer.error(error)
            raise typer.Exit(int(error.exit_code)) from None

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # PEP 362
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


_HELP = {"help_option_names": ["-h", "--help"]}


def _app(help_text: str | None) -> typer.Typer:
    return typer.Typer(
        help=help_text,
        add_completion=False,
        no_args_is_help=help_text is not None,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=_HELP,
    )


def _output(connection: Connection) -> Output:
    try:
        return Output(connection.output.value or Output.TEXT)
    except ValueError:
        raise UsageError(
            f"{connection.output.value!r} (from {connection.output.origin}) is no way to print: use text,"
            " json or jsonl."
        ) from None
