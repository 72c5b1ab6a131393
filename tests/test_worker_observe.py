"""What the worker sees of its machine: a real X display with real input, and what other systems print."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from worker.observe import cards, commands, input, load, screen, x11  # noqa: A004 -- the module's own name
from worker.observe.input import Unseen, idle_since, mac_idle_s, terminals
from worker.observe.machine import Machine
from worker.policy import Observation, Pause, Rules, judge

ON_X11 = pytest.mark.skipif(sys.platform != "linux", reason="Xvfb is a display of X11")
ALL = Rules(input_s=300.0, cpu_percent=25.0, programs=frozenset({"doom"}))
START_S = 30.0


@pytest.fixture
def xvfb(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A display without a screen, of this test alone; the server says on which number."""
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "640x480x24", "-nolisten", "tcp"]
    try:
        server = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        pytest.fail("Xvfb is not installed. On Debian and Ubuntu: apt install xvfb")
    os.close(write)
    with os.fdopen(read) as said:
        number = said.readline().strip()
    assert number, "the display did not start"
    monkeypatch.setenv("DISPLAY", f":{number}")
    for name in ("WAYLAND_DISPLAY", "XDG_SESSION_TYPE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield f":{number}"
    server.terminate()
    server.wait(START_S)


class Hand:
    """Somebody at the display: moves the mouse, opens windows."""

    def __init__(self, display: str) -> None:
        import xcffib
        import xcffib.xproto
        import xcffib.xtest

        self.connection: Any = xcffib.connect(display)
        self.screen = self.connection.get_setup().roots[0]
        self._xtest = self.connection(xcffib.xtest.key)
        self._proto = xcffib.xproto

    def move(self, x: int) -> None:
        motion = 6  # MotionNotify
        self._xtest.FakeInput(motion, 0, 0, self.screen.root, x, 10, 0)
        self.settle()

    def open(self, *, state: str) -> int:
        """A window with the focus, as a window manager that keeps the hints (EWMH) would show it."""
        window = int(self.connection.generate_id())
        core, root = self.connection.core, self.screen.root
        core.CreateWindow(0, window, root, 0, 0, 640, 480, 0, 1, self.screen.root_visual, 0, [])
        core.MapWindow(window)
        replace, atom = self._proto.PropMode.Replace, self._proto.Atom
        states = [self.atom(state)] if state else []
        core.ChangeProperty(replace, window, self.atom("_NET_WM_STATE"), atom.ATOM, 32, len(states), states)
        active = self.atom("_NET_ACTIVE_WINDOW")
        core.ChangeProperty(replace, root, active, atom.WINDOW, 32, 1, [window])
        self.settle()
        return window

    def close(self, window: int) -> None:
        self.connection.core.DestroyWindow(window)
        self.settle()

    def atom(self, name: str) -> int:
        return int(self.connection.core.InternAtom(False, len(name), name).reply().atom)

    def settle(self) -> None:
        """Until the server has done all that was asked."""
        self.connection.core.GetInputFocus().reply()


@pytest.fixture
def hand(xvfb: str) -> Iterator[Hand]:
    made = Hand(xvfb)
    yield made
    made.connection.disconnect()


@ON_X11
def test_real_input_on_a_real_display_is_seen(xvfb: str, hand: Hand) -> None:
    """Idle time grows by itself, and a move of the mouse ends it."""
    hand.move(5)
    waited = threading.Event()
    while x11.idle_ms(xvfb) < 200:
        waited.wait(0.02)
    before = x11.idle_ms(xvfb)
    hand.move(50)
    after = x11.idle_ms(xvfb)
    assert before >= 200
    assert after < before


@ON_X11
def test_somebody_at_the_display_pauses_the_worker_until_the_announced_moment(
    xvfb: str, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the mouse to the verdict: only the clock is ours, which runs on by five minutes at once."""
    monkeypatch.setattr(input, "terminals", lambda _: [])
    rules = Rules(input_s=300.0, gpu_alone=False, fullscreen=False, on_battery=True)
    machine = Machine(rules, has_cards=False)
    hand.move(70)
    seen = machine.look(None)
    assert seen.input_at is not None
    now = seen.input_at + 1
    verdict = judge(rules, seen, now)
    assert (verdict.sharing, verdict.why) == (False, "somebody is at this machine")
    assert verdict.next_change == seen.input_at + 300
    assert judge(rules, seen, verdict.next_change, verdict).sharing


@ON_X11
def test_a_window_that_fills_the_screen_is_seen_and_one_that_does_not_is_not(hand: Hand) -> None:
    assert not screen.fullscreen()
    ordinary = hand.open(state="_NET_WM_STATE_MAXIMIZED_VERT")
    assert not screen.fullscreen()
    hand.close(ordinary)
    game = hand.open(state="_NET_WM_STATE_FULLSCREEN")
    assert screen.fullscreen()
    hand.close(game)
    assert not screen.fullscreen(), "the focus still names a window that is gone"


@ON_X11
def test_a_display_that_is_gone_is_no_answer_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAYLAND_DISPLAY", "XDG_SESSION_TYPE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":9999")
    with pytest.raises(x11.NoAnswer):
        x11.idle_ms(":9999")
    with pytest.raises(Unseen):
        input.last_input(0.0)
    with pytest.raises(Unseen):
        screen.fullscreen()


@ON_X11
def test_under_wayland_the_honest_answer_is_that_nobody_can_know(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The display of Xwayland would say idle while somebody types in another window."""
    monkeypatch.setenv("XDG_SESSION_TYPE", "wayland")
    monkeypatch.setattr(input, "said", lambda *_: None)
    with pytest.raises(Unseen, match="Wayland"):
        input.last_input(0.0)
    with pytest.raises(Unseen, match="Wayland"):
        screen.fullscreen()
    monkeypatch.delenv("XDG_SESSION_TYPE")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    (tmp_path / "wayland-0").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert input.wayland_session(), "a service finds the compositor's socket"


@ON_X11
def test_gnomes_monitor_and_logind_are_asked_under_wayland(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_SESSION_TYPE", "wayland")
    monkeypatch.setattr(input, "terminals", lambda _: [])
    monkeypatch.setattr(input, "said", lambda *command: "t 5000\n" if command[0] == "busctl" else None)
    assert input.last_input(1000.0) == 995.0
    hint = "IdleHint=yes\nIdleSinceHint=900000000\n"
    monkeypatch.setattr(input, "said", lambda *command: hint if command[0] == "loginctl" else None)
    assert input.last_input(1000.0) == 900.0


def test_logind_tells_since_when_it_is_idle_and_else_nothing() -> None:
    assert idle_since("IdleHint=yes\nIdleSinceHint=1764183000000000\n") == 1764183000.0
    assert idle_since("IdleHint=no\nIdleSinceHint=1764183000000000\n") is None
    assert idle_since("IdleHint=yes\nIdleSinceHint=0\n") is None
    assert idle_since("Failed to get session") is None


def test_the_idle_time_of_macos_is_read_from_what_ioreg_prints() -> None:
    """As printed by macOS 15; the number is in nanoseconds."""
    printed = '  |   "HIDIdleTime" = 83247916625\n  |   "HIDParameters" = {"HIDIdleTime"=0}\n'
    assert mac_idle_s(printed) == 83.247916625
    for nothing in (None, "", "no such class"):
        with pytest.raises(Unseen):
            mac_idle_s(nothing)


def test_a_window_as_large_as_the_display_of_macos_fills_it() -> None:
    game = {"kCGWindowLayer": 0, "kCGWindowBounds": {"Width": 1440.0, "Height": 900.0}}
    menu = {"kCGWindowLayer": 24, "kCGWindowBounds": {"Width": 1440.0, "Height": 900.0}}
    assert screen.covers([menu, game], 1440, 900)
    assert not screen.covers([menu, {"kCGWindowLayer": 0}], 1440, 900)


def test_keys_in_terminals_count_as_input(tmp_path: Path) -> None:
    (tmp_path / "pts").mkdir()
    for name, at in (("pts/0", 100.0), ("pts/1", 200.0), ("tty1", 150.0), ("pts/ptmx", 900.0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    assert sorted(terminals(tmp_path)) == [100.0, 150.0, 200.0]


def test_a_command_that_is_not_there_fails_or_hangs_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands.said("no-such-command-here") is None
    assert commands.said(sys.executable, "-c", "raise SystemExit(1)") is None
    monkeypatch.setattr(commands, "ANSWER_S_MAX", 0.2)
    assert commands.said(sys.executable, "-c", "import threading; threading.Event().wait(60)") is None
    monkeypatch.setattr(commands, "ANSWER_S_MAX", 30.0)
    assert commands.said(sys.executable, "-c", "print('yes')") == "yes\n"


# --- others on the processor


def test_what_this_tree_of_processes_does_is_not_what_others_do() -> None:
    """A child of ours that computes is no other; percentages are smoothed and stay within their range."""
    burn = "n = 0\nwhile True: n += 1"
    with subprocess.Popen([sys.executable, "-c", burn]) as child:
        others = load.OthersLoad()
        assert others.look() is None, "nothing to compare with yet"
        before = psutil.Process(child.pid).cpu_times().user
        waited = threading.Event()
        while psutil.Process(child.pid).cpu_times().user < before + 0.3:
            waited.wait(0.02)
        busy, own = load._busy_s() - others.busy_s, load._own_s()
        assert child.pid in own
        assert busy >= 0.2
        percent = others.look()
        child.kill()
    assert percent is not None
    assert 0 <= percent <= 100
    assert percent <= max(0.0, busy - 0.2) / (0.3 * 0.5) * 100


@pytest.mark.parametrize("words", [["ray::EngineActor.serve"], ["python", "-m", "worker.engines"]])
def test_an_engine_that_is_no_child_of_this_process_is_no_other(words: list[str]) -> None:
    """An actor on the owner's Ray cluster, an engine of another worker: known by what their processes are called;
    a program that is called otherwise is a stranger.
    """
    for called, ours in ((words, True), (["ray::SomebodyElse.serve"], False)):
        with orphan(called) as process:
            assert process.pid not in load.own_tree()
            assert load.is_engine(process) == ours
            assert (process.pid in load._own_s()) == ours
            assert (cards._stranger(process.pid) == "") == ours


@contextmanager
def orphan(words: list[str]) -> Iterator[psutil.Process]:
    """A process with this command line that waits, and whose parent is gone."""
    wait = "import threading; threading.Event().wait(300)"
    start = (
        "import subprocess, sys; none = subprocess.DEVNULL; p = subprocess.Popen([sys.argv[2], '-c', sys.argv[1],"
        " *sys.argv[3:]], executable=sys.executable, stdin=none, stdout=none, stderr=none); print(p.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, wait, *words], check=True, capture_output=True, text=True
    )
    process = psutil.Process(int(done.stdout))
    try:
        yield process
    finally:
        process.kill()


def test_running_programs_are_known_by_the_name_of_their_file() -> None:
    names = load.programs()
    assert psutil.Process().name().lower() in names
    assert "no-such-program-runs" not in names


# --- cards, through a driver that is not here


class Nvml:
    """NVML as its functions answer, without a card; what is None raises, as on cards that do not know it."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotFound(NVMLError):  # noqa: N801, N818 -- NVML's own name
        pass

    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *, temperature: int | None = 60, compute: Any = (), samples: Any = None) -> None:
        self.temperature, self.compute, self.samples = temperature, compute, samples
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802 -- as all here
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 -- NVML's own name
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 -- NVML's own name
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 -- NVML's own name
        return index

    def nvmlDeviceGetTemperature(self, handle: int, _sensor: int) -> int:  # noqa: N802 -- NVML's own name
        return int(self._told(self.temperature)) + handle

    def nvmlDeviceGetPowerUsage(self, _handle: int) -> int:  # noqa: N802 -- NVML's own name
        return 150_500

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: int) -> Any:  # noqa: N802 -- NVML's own name
        return [SimpleNamespace(pid=pid) for pid in self._told(self.compute)]

    def nvmlDeviceGetProcessUtilization(self, _handle: int, _since: int) -> Any:  # noqa: N802 -- NVML's own name
        if self.samples == "none":
            raise self.NVMLError_NotFound
        return [SimpleNamespace(pid=pid, smUtil=percent) for pid, percent in self._told(self.samples)]

    def _told(self, value: Any) -> Any:
        if value is None:
            raise self.NVMLError
        return value


@pytest.fixture
def others() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's program that runs."""
    with subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait(300)"]) as process:
        yield process
        process.kill()


def look(nvml: Nvml, monkeypatch: pytest.MonkeyPatch, own: set[int], wanted: tuple[int, ...] = ()) -> Any:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = cards.cards(own, wanted)
    assert nvml.open == 0, "closed again"
    return found


def test_cards_tell_their_temperature_power_and_who_else_uses_them(
    monkeypatch: pytest.MonkeyPatch, others: subprocess.Popen[bytes]
) -> None:
    me = os.getpid()
    nvml = Nvml(compute=(me, others.pid), samples=[(others.pid, 50)])
    first, second = look(nvml, monkeypatch, {me})
    assert (first.temperature_c, first.power_w, second.temperature_c) == (60.0, 150.5, 61.0)
    assert first.others == (psutil.Process(others.pid).name(),)
    [only] = look(nvml, monkeypatch, {me, others.pid}, wanted=(1,))
    assert (only.index, only.others) == (1, ())


def test_a_game_without_a_context_is_seen_by_what_it_does(
    monkeypatch: pytest.MonkeyPatch, others: subprocess.Popen[bytes]
) -> None:
    name = psutil.Process(others.pid).name()
    playing = Nvml(compute=(), samples=[(others.pid, 60)])
    assert look(playing, monkeypatch, set())[0].others == (name,)
    desktop = Nvml(compute=(), samples=[(others.pid, 3)])
    assert look(desktop, monkeypatch, set())[0].others == (), "a desktop that draws a window is no game"
    assert look(Nvml(samples="none"), monkeypatch, set())[0].others == ()


def test_what_a_card_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    [card, _] = look(Nvml(temperature=None, compute=None, samples=None), monkeypatch, set())
    assert (card.temperature_c, card.others) == (None, None)


def test_engines_of_other_workers_on_this_machine_are_no_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    code = ["-c", "import threading; threading.Event().wait(300)", "-m", "worker.engines"]
    with subprocess.Popen([sys.executable, *code]) as engine:
        assert look(Nvml(compute=(engine.pid,), samples=[]), monkeypatch, set())[0].others == ()
        engine.kill()


def test_a_machine_without_a_driver_is_unseen_and_without_cards_it_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NoDriver(Nvml):
        def nvmlInit(self) -> None:  # noqa: N802 -- NVML's own name
            raise self.NVMLError

    monkeypatch.setitem(sys.modules, "pynvml", NoDriver())
    rules = Rules(fullscreen=False)
    assert Machine(rules).look(None).blind == {"gpu": "there is no NVIDIA driver"}
    assert Machine(rules, has_cards=False).look(None).blind == {}


# --- all together


def test_only_what_a_rule_asks_for_is_looked_at() -> None:
    off = Rules(on_battery=True, gpu_alone=False, fullscreen=False)
    assert Machine(off, has_cards=False).look(None) == Observation()


def test_a_look_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise OSError(5, "the bus is gone")

    monkeypatch.setattr("worker.observe.machine.fullscreen", broken)
    monkeypatch.setattr("worker.observe.machine.last_input", lambda _: broken())
    seen = Machine(ALL, has_cards=False).look(Pause())
    assert (seen.fullscreen, seen.input_at, seen.pause) == (None, None, Pause())
    assert "the bus is gone" in seen.blind["input"]
    assert seen.programs is not None
