"""How a daemon speaks: lines for people in a terminal or a journal, JSON otherwise; on stderr or into a file.

Every line has an `action`, a fixed word, for programs; the text is for people. Prompts and answers are
never logged: no call has them to give.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final, TextIO

import structlog

from potluck.home import SECRET_MODE, make_folder

FILE_BYTES_MAX: Final = 10_000_000
FILES_OLD_MAX: Final = 4
# sd-daemon(3): what stands in front of a line says how bad it is.
_PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "exception": 3, "critical": 2}


def configure(form: str, *, stream: TextIO | None = None, verbose: bool = False, file: str = "") -> None:
    """`form`: text, json, or auto (text if the stream is a terminal or a journal). `file`: a path, rotated.

    Raises OSError if the file cannot be written.
    """
    target = sys.stderr if stream is None else stream
    journal = not file and stream is None and in_journal(target)
    terminal = not file and target.isatty()
    human = form == "text" or (form == "auto" and (terminal or journal))
    renderer = (
        structlog.dev.ConsoleRenderer(colors=terminal, pad_event_to=0)
        if human
        else structlog.processors.JSONRenderer()
    )
    stamp = (
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        if human
        else structlog.processors.TimeStamper(fmt="iso", utc=True)
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _without_traceback,
    ]
    if not journal:  # which stamps each line itself
        processors.append(stamp)
    processors.append(_with_priority(renderer) if journal else renderer)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=_into_file(Path(file)) if file else structlog.PrintLoggerFactory(file=target),
        cache_logger_on_first_use=False,
    )


def in_journal(stream: TextIO) -> bool:
    """Whether systemd's journal reads this stream (systemd.exec(5), JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream without a descriptor
        found = os.fstat(stream.fileno())
        return (device, inode) == (str(found.st_dev), str(found.st_ino))
    return False


def _with_priority(renderer: Any) -> structlog.typing.Processor:
    def render(logger: Any, name: str, event: structlog.typing.EventDict) -> str:
        priority = _PRIORITY.get(str(event.pop("level", "info")), 6)
        lines = str(renderer(logger, name, event)).splitlines()
        return "\n".join(f"<{priority}>{line}" for line in lines)

    return render


class _Rotated(RotatingFileHandler):
    """Closed to others; a disk that is full loses lines, not the daemon."""

    def _open(self) -> Any:
        def closed_to_others(path: str, flags: int) -> int:
            return os.open(path, flags, SECRET_MODE)

        return open(self.baseFilename, self.mode, encoding="utf-8", opener=closed_to_others)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- the library's name
        del record


class _Lines:
    """What structlog writes to: every level is a line."""

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler

    def msg(self, message: str) -> None:
        self._handler.emit(logging.makeLogRecord({"msg": message}))

    def close(self) -> None:
        self._handler.close()

    log = debug = info = warn = warning = error = critical = exception = fatal = failure = msg


def _into_file(path: Path) -> Callable[..., _Lines]:
    make_folder(path.absolute().parent)
    handler = _Rotated(path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_OLD_MAX)
    return lambda *_: _Lines(handler)


def _without_traceback(
    _: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """A traceback can quote what a job holds: where it happened is kept, the words are not."""
    information = event.pop("exc_info", None)
    error = sys.exc_info()[1] if information is True else information
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        if error.__traceback__ is not None:
            trace = error.__traceback__
            while trace.tb_next is not None:
                trace = trace.tb_next
            event["at"] = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return event
