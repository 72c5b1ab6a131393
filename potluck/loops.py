"""The event loop of processes that stream.

Not of the worker's daemon, which starts processes: uvloop forks for that, through the handlers that gRPC has
for forks, and these write to its log and hold up its threads.
"""

import asyncio
from collections.abc import Callable


def quickest() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it exists: it relays streams with about half the work. Windows has none."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop
