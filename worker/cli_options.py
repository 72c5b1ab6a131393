"""Options of `potluck worker`: the output that all share, and what `start` lets an owner say."""

from typing import Annotated

import typer

from potluck.cli.printing import Output

OutputOption = Annotated[
    Output,
    typer.Option(
        "--output", "-o", envvar="POTLUCK_OUTPUT", help="text, or json for programs.", show_default=True
    ),
]

ModelsOption = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Models to serve, loaded as far as they fit together, and else when they are asked for."
        " Default: the pool's first that fits.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Threads of all engines together. Default: this machine's cores, shared evenly among the"
        " workers that run on it.",
    ),
]
SlotsOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Requests at once for each model. Default: the engine's choice."),
]
OnlyIdleOption = Annotated[
    float | None,
    typer.Option(metavar="MINUTES", help="Share only after so long without keyboard and mouse."),
]
HoursOption = Annotated[
    str | None,
    typer.Option(metavar="22:00-07:00", help="Share in these hours only, each day; more with commas."),
]
OnBatteryOption = Annotated[
    bool | None, typer.Option("--on-battery/--no-battery", help="Share on battery, too. Default: no.")
]
MaxVramOption = Annotated[
    str | None, typer.Option(metavar="12GB|80%", help="Of each card's memory, for all models together.")
]
MaxMemoryOption = Annotated[
    str | None, typer.Option(metavar="12GB|50%", help="Of the machine's memory, for all models together.")
]
MaxTemperatureOption = Annotated[
    float | None,
    typer.Option(metavar="CELSIUS", help="Pause while a card is hotter. Default: 85; 0: no cap."),
]
RayOption = Annotated[
    bool | None,
    typer.Option(
        "--ray",
        help="Serve with every card of this machine, through a Ray cluster of its own. Needs potluck[ray].",
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Serve on all nodes of your own Ray cluster, which needs its token."
    ),
]
