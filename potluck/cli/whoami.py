"""`potluck whoami`."""

from potluck.cli.session import Session, single


def whoami(session: Session) -> None:
    """Who you are, and in which pool."""
    me, printer = session.pool.me(), session.printer
    facts = [
        ("member", f"{me.member.name} ({me.member.id})"),
        ("role", me.member.role),
        ("account", me.account),
        ("key", f"{me.key.name} ({me.key.prefix})"),
        ("pool", f"{me.pool} at {session.pool.url}"),
        ("profile", f"{session.connection.profile.value}"),
    ]
    printer.show(me, lambda: printer.facts(facts))


app = single("whoami", whoami, example="potluck whoami")
