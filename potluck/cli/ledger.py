"""`potluck ledger`: the whole ledger in a file, and whether all of it is right, without trusting the pool."""

from pathlib import Path
from typing import Annotated, Final

import typer

from potluck.cli.session import Session, command, group, with_options
from potluck.cli.shown import Shown
from potluck.client import POOL_KEY, ClientFile, saved_pool_key
from potluck.errors import InvalidRequest, UsageError
from potluck.proof.lines import Fault, HeadLine
from potluck.proof.verify import Summary, read_head, verify
from potluck.results import plain

DEFAULT_FILE: Final = Path("potluck-ledger.jsonl")

app = group("Export the whole ledger; verify one offline.")


@command(app, "export", example="potluck ledger export ledger.jsonl")
def export(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to.")] = DEFAULT_FILE,
) -> None:
    """Write all of the ledger to a file: yours in clear, others' accounts as pseudonyms."""
    printer = session.printer
    with Shown("records exported", shown=printer.text) as progress:
        pool = session.pool.export_ledger(file, progress)
    known = _remember(session, pool.public_key)
    data = {"file": str(file), "pool": pool.name, "public_key": pool.public_key, "counts": dict(pool.counts)}

    def as_text() -> None:
        counts = pool.counts
        printer.line(f"{file}: {counts['entries']} entries and {counts['receipts']} receipts of {pool.name}")
        printer.note(f"Check it, on any machine:  potluck ledger verify {file} --key {pool.public_key}")

    printer.show(data | {"key_known": known}, as_text)


@command(app, "head", example="potluck ledger head --save head.json")
def head(
    session: Session,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Keep it for later.")] = None,
) -> None:
    """The signed ends of the ledger as it is now; kept, it shows later whether the history was changed."""
    found, printer = session.pool.ledger_head(), session.printer
    if save is not None:
        _write(save, found)
    facts = [
        ("pool", found.pool),
        ("public key", found.public_key),
        ("entries", f"{found.number}, the last one's hash {found.hash}"),
        ("receipts", f"{found.receipts_number}, the last one's hash {found.receipts_hash}"),
        ("signed", found.at),
    ]
    printer.show(found, lambda: printer.facts(facts))
    if save is not None:
        printer.note(f"Kept in {save}. Later:  potluck ledger verify EXPORT --head {save}")
    _remember(session, found.public_key)


def verify_(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `potluck ledger export` wrote.")],
    head: Annotated[
        Path | None, typer.Option("--head", metavar="FILE", help="A head from earlier that must lie on it.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="HEX", help="The pool's public key. Default: the one seen at login."),
    ] = None,
    thorough: Annotated[
        bool,
        typer.Option(
            "--thorough", help="Each countersignature too, which the signed end of the chain covers."
        ),
    ] = False,
) -> None:
    """Check all of an export, offline; exit 5 with the first thing that is wrong."""
    public_key, origin = _key(session, key)
    saved = None if head is None else _saved(head)
    try:
        with Shown("records checked", shown=session.printer.text) as progress:
            summary = verify(file, key=public_key, saved=saved, progress=progress, thorough=thorough)
    except Fault as fault:
        hint = ""
        if public_key is not None and fault.kind == "line" and "public key" in fault.what:
            hint = f" The key is {origin}; give another one with --key, or choose a login with --profile."
        raise InvalidRequest(
            f"{file}: {fault}.{hint}",
            code="ledger_fault",
            extra={"record": fault.kind, "number": fault.number},
        ) from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}.") from None
    session.printer.show(plain(summary) | {"key_origin": origin}, lambda: _tell(session, summary, origin))


app.command(
    "verify",
    epilog="Example:  potluck ledger verify ledger.jsonl --head head.json",
    context_settings={"help_option_names": ["-h", "--help"]},
)(with_options(verify_, "output", "micro", "profile"))


def _tell(session: Session, summary: Summary, origin: str) -> None:
    printer = session.printer
    amount, receipts = printer.amount, summary.receipts
    charged = f"{amount(summary.charged)} charged, of it {amount(summary.fees)} fees"
    moved = f"{amount(summary.granted)} granted, {amount(summary.transferred)} transferred"
    skipped = summary.charges_not_recomputed
    facts = [
        ("pool", f"{summary.pool}, exported {summary.exported_at} for {summary.account}"),
        ("key", f"{summary.public_key}, {origin}"),
        ("entries", f"{summary.entries}, {summary.heads} signed heads"),
        ("jobs", f"{summary.jobs_closed} closed, {summary.jobs_open} open"),
        (printer.unit, f"{charged}; {moved}"),
        ("own charges", f"{summary.charges_recomputed} recomputed" + (f", {skipped} not" if skipped else "")),
        ("receipts", ", ".join(f"{count} {state}" for state, count in receipts.items())),
        ("missing", f"{summary.receipts_missing} paid without a receipt"),
    ]
    if free := summary.receipts_free:
        facts.append(("free", f"{free} receipts of jobs on own workers, which move nothing"))
    if unpaid := summary.receipts_unpaid:
        facts.append(("not paid", f"{unpaid} matched receipts: their jobs are open, or were refunded later"))
    if older := summary.receipts_uncountersigned:
        facts.append(("old", f"{older} receipts from before the pool countersigned them"))
    if summary.saved_head is not None:
        facts.append(("saved head", f"lies on the chain, at entry {summary.saved_head}"))
    printer.facts(facts)
    if summary.key_from_file:
        printer.line("The file agrees with itself.")
        printer.note(
            "Note: the pool's key stands in the file alone, so this proves consistency and not whose ledger"
            " it is. Get the key from somebody you trust, and give it with --key."
        )
    else:
        printer.line("Nothing is wrong.")


def _key(session: Session, given: str | None) -> tuple[bytes | None, str]:
    """The pool's public key, and where it is from in words. Raises UsageError."""
    if given is not None:
        digits = given.strip().lower()
        if not POOL_KEY.fullmatch(digits):
            raise UsageError("--key: a pool's public key has 64 hex digits, as `potluck ledger head` shows.")
        return bytes.fromhex(digits), "given by --key"
    if (found := saved_pool_key(session.connection)) is not None:
        profile = session.connection.profile.value
        return bytes.fromhex(found), f"saved in {session.connection.file} for profile {profile}"
    return None, "from the file itself"


def _saved(path: Path) -> HeadLine:
    try:
        return read_head(path)[0]
    except Fault as fault:
        raise InvalidRequest(f"{fault.what}.", code="ledger_fault") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None


def _remember(session: Session, public_key: str) -> bool:
    """Keep the pool's key when it is first seen; whether it is the one that was known."""
    known = saved_pool_key(session.connection)
    if known is None:
        file, name = ClientFile.load(), session.connection.profile.value or ""
        if file.profiles.get(name, {}).get("url") == session.connection.address:
            file.save_pool_key(name, public_key)
    elif known != public_key:
        session.printer.note(
            f"Note: the pool signs by the key {public_key}, and was known by {known}. Ask its admin why."
        )
        return False
    return True


def _write(path: Path, found: object) -> None:
    import json

    from potluck.home import write_atomic

    try:
        write_atomic(path, json.dumps(plain(found), indent=2).encode() + b"\n")
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror or error}.") from None
