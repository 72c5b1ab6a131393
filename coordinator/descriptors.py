"""How many files and connections this process may have open."""

import sys
from typing import Final

import structlog

from coordinator.connections import RESERVE
from coordinator.settings import Settings

OTHERS: Final = 512  # the database, files, webhooks, what libraries open
log = structlog.get_logger(__name__)


def make_room(settings: Settings) -> None:
    """As many as the system lets us, and a word if that is less than the settings' limits need.

    A shell's usual 1,024 would end a pool at a thousand workers.
    """
    if sys.platform == "win32":
        return  # sockets are no files there, and have no such limit
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.connections_max + RESERVE + settings.sessions_max + OTHERS
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != resource.RLIM_INFINITY and soft < needed:
        log.warning(
            "few files may be open",
            action="few_descriptors",
            allowed=soft,
            needed=needed,
            hint="raise LimitNOFILE, or lower connections_max and sessions_max",
        )
