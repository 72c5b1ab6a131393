"""How a daemon speaks: lines for people in a terminal, JSON otherwise; always on stderr.

Every line has an `action`, a fixed word, for programs; the text is for people. Prompts and answers are
never logged: no call has them to give.
"""

import logging
import sys
from typing import TextIO

import structlog


def configure(form: str, *, stream: TextIO | None = None, verbose: bool = False) -> None:
    """`form`: text, json, or auto (text if the stream is a terminal)."""
    target = sys.stderr if stream is None else stream
    human = form == "text" or (form == "auto" and target.isatty())
    renderer = (
        structlog.dev.ConsoleRenderer(colors=target.isatty(), pad_event_to=0)
        if human
        else structlog.processors.JSONRenderer()
    )
    stamp = (
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        if human
        else structlog.processors.TimeStamper(fmt="iso", utc=True)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            stamp,
            _without_traceback,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=target),
        cache_logger_on_first_use=False,
    )


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
