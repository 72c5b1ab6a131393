"""`potluck balance`."""

from potluck.cli.session import Session, single


def balance(session: Session) -> None:
    """What you gave minus what you took, and what you can still spend."""
    found, printer = session.pool.balance(), session.printer
    why = f": {found.held_why}" if found.held and found.held_why else ""
    facts = [
        ("balance", f"{printer.amount(found.balance)} {printer.unit}"),
        ("reserved", f"{printer.amount(found.reserved)} for jobs that run"),
        ("held", f"{printer.amount(found.held)} earned, not yet free{why}"),
        ("credit line", f"{printer.amount(found.credit_line)} you may owe"),
        ("available", f"{printer.amount(found.available)} to spend now"),
    ]
    printer.show(found, lambda: printer.facts(facts))
    if found.available <= 0:
        printer.note("Nothing is left to spend. Earn credits by sharing a machine: `potluck worker --help`.")


app = single("balance", balance, example="potluck balance --micro")
