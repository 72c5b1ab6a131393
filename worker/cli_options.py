"""Options that several commands of `potluck worker` share."""

from typing import Annotated

import typer

from potluck.cli.printing import Output

OutputOption = Annotated[
    Output,
    typer.Option(
        "--output", "-o", envvar="POTLUCK_OUTPUT", help="text, or json for programs.", show_default=True
    ),
]
