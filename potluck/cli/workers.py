"""`potluck workers`: the machines of the pool, and what their owners and admins ask of them from afar."""

from dataclasses import replace
from typing import Annotated

import typer

from potluck.cli.amounts import YesOption, asked
from potluck.cli.durations import seconds_of
from potluck.cli.session import Session, command, group_with
from potluck.errors import NotFound, UsageError
from potluck.results import Worker, WorkerModel

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A worker's name, your own first, or id.")]


def workers(session: Session) -> None:
    """The machines that are in the pool, what they serve, and why not where they do not."""
    found, printer = session.pool.workers(), session.printer
    if not found:
        printer.note(
            "No worker has joined yet. `potluck coordinator join-token` prints what to run on a machine that"
            " shall share."
        )
    rows = [
        (
            worker.name,
            worker.member,
            worker.state + (f": {worker.why}" if worker.why else ""),
            models_line(worker) or "-",
            printer.amount(worker.earned),
        )
        for worker in found
    ]
    headers = ("WORKER", "MEMBER", "STATE", "MODELS", "EARNED")
    printer.show(found, lambda: printer.table(headers, rows) if rows else None)


def models_line(worker: Worker) -> str:
    """Its models in a few words. What they did when it went is said of none that is away, and what is said of
    the worker is not said of each model again."""
    here = worker.state not in ("away", "revoked")
    told = [
        replace(
            model,
            state=model.state if here else "",
            why=model.why if here and not (worker.why and worker.why in (model.why or "")) else None,
        )
        for model in worker.models
    ]
    return ", ".join(model_line(model) for model in told)


def model_line(model: WorkerModel) -> str:
    """One model in a few words: "smollm2-135m-instruct (llamacpp, downloading 42 %)"."""
    state = model.state
    if state in {"downloading", "loading"} and model.bytes_total:
        state += f" {model.bytes_done * 100 // model.bytes_total} %"
    inside = ", ".join(part for part in (model.engine, state, model.why or "") if part)
    return f"{model.name} ({inside})" if inside else model.name


app = group_with("workers", workers, example="potluck workers")


@command(app, "pause", example="potluck workers pause attic --for 2h")
def pause(
    session: Session,
    name: NameArgument,
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="It ends by itself: 90s, 30m, 2h, 1d. Default: never."),
    ] = None,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Said to whoever looks at it.")] = "",
) -> None:
    """Pause a worker of yours, as an admin any: what runs goes on elsewhere. It holds over restarts."""
    worker = session.pool.pause_worker(named(session, name).id, for_s=seconds_of(for_), why=why)
    away = worker.state == "away"
    words = "it is away and hears of it when it comes" if away else "what runs goes on elsewhere"
    session.printer.show(worker, lambda: session.printer.line(f"{worker.name} is asked to pause: {words}."))


@command(app, "resume", example="potluck workers resume attic")
def resume(session: Session, name: NameArgument) -> None:
    """Take a pause from afar back; one that was made on the machine ends only there."""
    worker = session.pool.resume_worker(named(session, name).id)
    words = f"Nothing from afar keeps {worker.name} from sharing; its owner's rules and word there still may."
    session.printer.show(worker, lambda: session.printer.line(words))


@command(app, "drain", example="potluck workers drain attic")
def drain(session: Session, name: NameArgument, yes: YesOption = False) -> None:
    """Let a worker finish what runs and end its daemon; somebody must start it again on the machine."""
    found = named(session, name)
    if not asked(session, f"Drain {found.name}? Its daemon ends.", yes=yes):
        return
    worker = session.pool.drain_worker(found.id)
    rest = f"finishes {worker.running} answers, then it stops" if worker.running else "stops"
    session.printer.show(worker, lambda: session.printer.line(f"{worker.name} {rest}."))


@command(app, "rename", example="potluck workers rename attic cellar")
def rename(
    session: Session,
    name: NameArgument,
    to: Annotated[str, typer.Argument(metavar="TO", help="The new name.")],
) -> None:
    """Give a worker of yours another name."""
    found = named(session, name)
    worker = session.pool.rename_worker(found.id, to)
    session.printer.show(worker, lambda: session.printer.line(f"{found.name} is called {worker.name} now."))


@command(app, "revoke", example="potluck workers revoke attic")
def revoke(session: Session, name: NameArgument, yes: YesOption = False) -> None:
    """Shut a worker out for good: what runs goes on elsewhere, and to share again it must join anew."""
    found, printer = named(session, name), session.printer
    if not asked(
        session, f"Revoke {found.name} ({found.id}) of {found.member} for good?", yes=yes, final=True
    ):
        return
    session.pool.revoke_worker(found.id)
    shown = {"id": found.id, "name": found.name, "revoked": True}
    printer.show(
        shown, lambda: printer.line(f"{found.name} is shut out for good. What it earned stays earned.")
    )


def named(session: Session, name: str) -> Worker:
    """By id, or by name, one's own first. Raises NotFound, or UsageError where a name is not enough."""
    workers = session.pool.workers()
    found = [worker for worker in workers if name in (worker.id, worker.name)]
    if len(found) > 1:
        me = session.pool.me().member.name
        found = [worker for worker in found if worker.member == me] or found
    if not found:
        raise NotFound(f"This pool has no worker {name[:64]!r}. `potluck workers` lists them.")
    if len(found) > 1:
        ids = ", ".join(f"{worker.id} of {worker.member}" for worker in found)
        raise UsageError(f"Several workers are called {name!r}: give the id. {ids}")
    return found[0]
