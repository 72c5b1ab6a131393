"""The command `potluck`, also as `python -m potluck` for those who mean this very installation.

It loads nothing of its own, so that a Ctrl-C while the rest is loading ends it like any other.
"""

import sys
from typing import NoReturn

INTERRUPTED = 130  # ExitCode.INTERRUPTED, which is not loaded yet


def main() -> NoReturn:
    """Run the command line; see `potluck.cli.main`."""
    try:
        from potluck.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
