"""The ways in which an owner asks a daemon to stop."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_signals(loop: asyncio.AbstractEventLoop, asked: Callable[[], None]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM (on Windows Ctrl-C and Ctrl-Break) call `asked` on the loop."""
    names = ("SIGINT", "SIGBREAK") if sys.platform == "win32" else ("SIGINT", "SIGTERM")
    numbers = [signal.Signals[name] for name in names]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if sys.platform == "win32":  # asyncio has no signal handlers there
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(asked))
        else:
            loop.add_signal_handler(number, asked)
    try:
        yield
    finally:
        for number in numbers:
            if sys.platform != "win32":
                loop.remove_signal_handler(number)
            signal.signal(number, before[number])
