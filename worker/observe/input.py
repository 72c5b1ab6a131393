"""When somebody last touched keyboard, mouse or a terminal of this machine.

Linux asks whoever can know: the X display, GNOME's own monitor (which knows under Wayland, too), logind's
hint, and the terminals, whose access time is the last key in them. macOS: IOHIDSystem's HIDIdleTime. Windows:
GetLastInputInfo. Where nobody can know, the answer is Unseen with a reason in words, never a guess.
"""

import os
import re
import sys
from pathlib import Path
from typing import Final

from worker.observe import x11
from worker.observe.commands import said

MUTTER: Final = ("org.gnome.Mutter.IdleMonitor", "/org/gnome/Mutter/IdleMonitor/Core")
TERMINALS: Final = ("pts/[0-9]*", "tty[0-9]*")


class Unseen(Exception):  # noqa: N818 -- named for what happened
    """It cannot be seen here; the sentence says why."""


if sys.platform == "win32":
    import ctypes

    class _LastInput(ctypes.Structure):
        _fields_ = (("cbSize", ctypes.c_uint), ("dwTime", ctypes.c_uint))

    def last_input(now: float) -> float:
        """Seconds since the epoch, as `now`. Raises Unseen."""
        last = _LastInput(cbSize=ctypes.sizeof(_LastInput))
        if not ctypes.windll.user32.GetLastInputInfo(ctypes.byref(last)):
            raise Unseen("the system does not tell the last input")
        ticks = ctypes.windll.kernel32.GetTickCount()  # both count milliseconds, and wrap at 2^32
        return now - ((ticks - last.dwTime) & 0xFFFFFFFF) / 1000

elif sys.platform == "darwin":

    def last_input(now: float) -> float:
        """Seconds since the epoch, as `now`. Raises Unseen."""
        return now - mac_idle_s(said("ioreg", "-c", "IOHIDSystem", "-d", "4"))

else:

    def last_input(now: float) -> float:
        """Seconds since the epoch, as `now`: the newest of what the display and the terminals tell.

        Raises Unseen, also where there is a display that does not tell: whoever sits there uses no terminal.
        """
        moments = terminals(Path("/dev"))
        if wayland_session():
            moments.append(_wayland(now))
        elif (name := x11.display()) is not None:
            try:
                moments.append(now - x11.idle_ms(name) / 1000)
            except x11.NoAnswer as error:
                raise Unseen(str(error)) from None
        if not moments:
            raise Unseen("there is neither a display nor a terminal")
        return max(moments)

    def _wayland(now: float) -> float:
        """Raises Unseen."""
        answer = said("busctl", "--user", "call", *MUTTER, MUTTER[0], "GetIdletime")
        if answer is not None and (match := re.fullmatch(r"t ([0-9]{1,18})\s*", answer)):
            return now - int(match[1]) / 1000
        hint = said("loginctl", "show-user", str(os.getuid()), "-p", "IdleHint", "-p", "IdleSinceHint")
        if (since := idle_since(hint or "")) is not None:
            return since
        raise Unseen("under Wayland only GNOME tells, and sessions that report when they are idle")


def wayland_session() -> bool:
    """Whether this user's desktop runs on Wayland; a service finds out, too, without its variables."""
    if os.environ.get("XDG_SESSION_TYPE") == "wayland" or os.environ.get("WAYLAND_DISPLAY"):
        return True
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    return bool(folder) and any(Path(folder).glob("wayland-[0-9]*"))


def idle_since(hint: str) -> float | None:
    """From logind's properties; None if the session is not idle (or never says so): then nobody knows since
    when it is not."""
    values = dict(line.split("=", 1) for line in hint.splitlines() if "=" in line)
    since = values.get("IdleSinceHint", "0")
    if values.get("IdleHint") != "yes" or not since.isdecimal() or int(since) == 0:
        return None
    return int(since) / 1e6


def terminals(devices: Path) -> list[float]:
    """When a key was last pressed in each terminal, to some seconds: the kernel notes it as an access."""
    found = []
    for pattern in TERMINALS:
        for path in devices.glob(pattern):
            try:
                found.append(path.stat().st_atime)
            except OSError:  # closed meanwhile
                continue
    return found


def mac_idle_s(answer: str | None) -> float:
    """From `ioreg -c IOHIDSystem`: HIDIdleTime in nanoseconds. Raises Unseen."""
    match = re.search(r'"HIDIdleTime"\s*=\s*([0-9]{1,19})', answer or "")
    if match is None:
        raise Unseen("the system does not tell its HIDIdleTime")
    return int(match[1]) / 1e9
