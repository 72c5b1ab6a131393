"""The event loop of processes that stream."""

import asyncio
from collections.abc import Callable


def quickest() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it exists: it relays streams with about half the work. Windows has none."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop
