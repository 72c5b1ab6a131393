"""A server that ends with the one who started it: `python -m worker.engines.guard COMMAND`.

It holds the server as its child and reads its own stdin, on which nothing is ever said. When that closes,
because the engine closed it or is gone, the server and what it started are asked to end, then killed. Of its
owner's environment the server gets all but Potluck's own variables, among which keys and tokens may be.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import NoReturn

GRACE_S = 5.0
OURS = "POTLUCK_"


def main() -> NoReturn:
    """Ends with the server's exit code."""
    for name in (signal.SIGINT, signal.SIGTERM):  # the engine ignores them, and a child would inherit that
        signal.signal(name, lambda *_: None)
    try:
        process = subprocess.Popen(
            sys.argv[1:],
            stdin=subprocess.DEVNULL,
            env=without_ours(os.environ),
            start_new_session=sys.platform != "win32",
        )
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]} cannot be started: {error}\n")
        sys.exit(127)
    threading.Thread(target=_watch, args=(process,), daemon=True).start()
    code = process.wait()
    sys.stderr.flush()
    os._exit(code if 0 <= code < 256 else 1)


def without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    """What a server may see: where its files, caches, cards and proxies are, and its own secrets."""
    return {name: value for name, value in environ.items() if not name.upper().startswith(OURS)}


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
