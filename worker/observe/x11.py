"""What an X display tells: how long nobody has touched it, and whether a window fills its screen.

Through XCB, which answers a lost server with an exception (Xlib would end the process). Extensions and
properties: MIT-SCREEN-SAVER (X.Org), and _NET_ACTIVE_WINDOW and _NET_WM_STATE_FULLSCREEN of the Extended
Window Manager Hints (freedesktop.org).
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

SOCKETS: Final = Path("/tmp/.X11-unix")  # noqa: S108 -- where X servers of Unix have their sockets
STATES_MAX: Final = 64


class NoAnswer(Exception):  # noqa: N818 -- named for what happened
    """The X server is there, and does not tell."""


def display() -> str | None:
    """The display of this user's session: the variable, or else the first socket."""
    if given := os.environ.get("DISPLAY", ""):
        return given
    names = sorted(path.name for path in SOCKETS.glob("X*")) if SOCKETS.is_dir() else []
    return f":{names[0].removeprefix('X')}" if names else None


def idle_ms(name: str) -> int:
    """Milliseconds since the last input on the display. Raises NoAnswer."""
    import xcffib.screensaver

    with _connected(name) as (connection, root):
        saver = connection(xcffib.screensaver.key)
        return int(saver.QueryInfo(root).reply().ms_since_user_input)


def fullscreen(name: str) -> bool:
    """Whether the window that has the focus fills the screen. Raises NoAnswer."""
    import xcffib.xproto

    with _connected(name) as (connection, root):
        windows = _property(connection, root, "_NET_ACTIVE_WINDOW", xcffib.xproto.Atom.WINDOW)
        if not windows or not windows[0]:
            return False
        wanted = _atom(connection, "_NET_WM_STATE_FULLSCREEN")
        return wanted in _property(connection, windows[0], "_NET_WM_STATE", xcffib.xproto.Atom.ATOM)


def _atom(connection: Any, name: str) -> int:
    return int(connection.core.InternAtom(False, len(name), name).reply().atom)


def _property(connection: Any, window: int, name: str, kind: int) -> list[int]:
    import xcffib.xproto

    request = connection.core.GetProperty(False, window, _atom(connection, name), kind, 0, STATES_MAX)
    try:
        return list(request.reply().value.to_atoms())
    except xcffib.xproto.WindowError:  # it closed between the two questions
        return []


@contextlib.contextmanager
def _connected(name: str) -> Iterator[tuple[Any, int]]:
    """A connection for as long as the block, and the first screen's root window. Raises NoAnswer."""
    try:
        import xcffib
    except (ImportError, OSError) as error:  # no libxcb on this machine
        raise NoAnswer("the library of X displays (libxcb) is not installed") from error
    try:
        connection: Any = xcffib.connect(name)
    except xcffib.XcffibException as error:
        raise NoAnswer(f"the display {name} lets this user not in") from error
    try:
        yield connection, int(connection.get_setup().roots[0].root)
    except xcffib.XcffibException as error:
        raise NoAnswer(f"the display {name} does not answer") from error
    finally:
        connection.disconnect()
