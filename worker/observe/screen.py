"""Whether a program fills the screen: a game, a film, a talk.

X11: the state of the window with the focus. Windows: SHQueryUserNotificationState, which knows full-screen
programs, games and presentations. macOS: whether an ordinary window of the front program has the size of the
main display, as the window server lists it. Wayland tells no other program.
"""

import sys
from typing import Any, Final

from worker.observe import x11
from worker.observe.input import Unseen, wayland_session

# https://learn.microsoft.com/windows/win32/api/shellapi/ne-shellapi-query_user_notification_state
BUSY, DIRECT3D, PRESENTATION = 2, 3, 4
WINDOWS_MAX: Final = 4096


if sys.platform == "win32":
    import ctypes

    def fullscreen() -> bool:
        """Raises Unseen."""
        state = ctypes.c_int()
        if ctypes.windll.shell32.SHQueryUserNotificationState(ctypes.byref(state)) != 0:
            raise Unseen("the system does not tell")
        return state.value in {BUSY, DIRECT3D, PRESENTATION}

elif sys.platform == "darwin":

    def fullscreen() -> bool:
        """Through pyobjc where it is installed; without it nobody can be asked. Raises Unseen."""
        try:
            import Quartz
        except ImportError:
            raise Unseen("pyobjc-framework-Quartz is not installed") from None
        on_screen = Quartz.kCGWindowListOptionOnScreenOnly | Quartz.kCGWindowListExcludeDesktopElements
        listed = Quartz.CGWindowListCopyWindowInfo(on_screen, Quartz.kCGNullWindowID) or ()
        bounds = Quartz.CGDisplayBounds(Quartz.CGMainDisplayID())
        return covers(list(listed)[:WINDOWS_MAX], bounds.size.width, bounds.size.height)

else:

    def fullscreen() -> bool:
        """Raises Unseen. A machine without a display has nothing on it."""
        if wayland_session():
            raise Unseen("Wayland does not tell other programs")
        name = x11.display()
        if name is None:
            return False
        try:
            return x11.fullscreen(name)
        except x11.NoAnswer as error:
            raise Unseen(str(error)) from None


def covers(windows: list[Any], width: float, height: float) -> bool:
    """Whether an ordinary window (layer 0) is as large as the display."""
    for window in windows:
        size = window.get("kCGWindowBounds", {})
        whole = size.get("Width", 0) >= width and size.get("Height", 0) >= height
        if whole and window.get("kCGWindowLayer", 1) == 0:
            return True
    return False
