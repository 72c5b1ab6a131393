"""A server that ends with the one who started it: `python -m worker.engines.guard COMMAND`.

It holds the server as its child and reads its own stdin, on which nothing is ever said. When that closes,
because the engine closed it or is gone, the server and what it started are asked to end, then killed.
"""

import os
import signal
import subprocess
import sys
import threading
from typing import NoReturn

GRACE_S = 5.0


def main() -> NoReturn:
    """Ends with the server's exit code."""
    for name in (signal.SIGINT, signal.SIGTERM):  # the engine ignores them, and a child would inherit that
        signal.signal(name, lambda *_: None)
    try:
        process = subprocess.Popen(
            sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=sys.platform != "win32"
        )
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]} cannot be started: {error}\n")
        sys.exit(127)
    threading.Thread(target=_watch, args=(process,), daemon=True).start()
    code = process.wait()
    sys.stderr.flush()
    os._exit(code if 0 <= code < 256 else 1)


def _watch(process: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 4096):
        pass
    _end(process, kill=False)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        _end(process, kill=True)


def _end(process: "subprocess.Popen[bytes]", *, kill: bool) -> None:
    if sys.platform == "win32":
        process.kill() if kill else process.terminate()
        return
    try:
        os.killpg(process.pid, signal.SIGKILL if kill else signal.SIGTERM)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main()
