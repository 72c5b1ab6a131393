"""Traces of what happens to a request, by OpenTelemetry, where its extra is installed and somebody collects.

On with OTEL_EXPORTER_OTLP_ENDPOINT (OpenTelemetry Specification, OTLP Exporter), and only then; the SDK's
other variables hold as well. Spans travel as OTLP over HTTP, from a thread of their own. What a member asks
or is answered is in none of them.
"""

import os
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Self

import structlog

from potluck.version import version

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FLUSH_S_MAX: Final = 3.0  # for what was not sent yet when the process ends
_EXTRA: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

log = structlog.get_logger(__name__)


class Tracing:
    """The spans of one process; `open` makes it where it is wanted."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("potluck", version())
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def open(cls, service: str) -> Self | None:
        """None where nobody collects spans. `service`: its name, unless OTEL_SERVICE_NAME is set."""
        if not any(map(os.environ.get, ENDPOINTS)) or os.environ.get("OTEL_SDK_DISABLED") == "true":
            return None
        if not _installed():
            message = "traces are wanted, but the extra is not there: pip install 'potluck[otel]'"
            log.warning(message, action="tracing_missing")
            return None
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = {"service.name": os.environ.get("OTEL_SERVICE_NAME", service), "service.version": version()}
        provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def begin(
        self, name: str, parent: "Context | None" = None, *, kind: str = "internal", **attributes: Any
    ) -> "Span":
        """A span in the parent, or else in whatever span is the current one.

        `kind` is one of OpenTelemetry's; names of attributes have `__` for dots.
        """
        from opentelemetry.trace import SpanKind

        return self._tracer.start_span(name, parent, SpanKind[kind.upper()], dotted(attributes))

    def within(self, span: "Span") -> "Context":
        """For spans inside it."""
        from opentelemetry.trace import set_span_in_context

        return set_span_in_context(span)

    def carried(self, headers: Mapping[str, str]) -> "Context":
        """The caller's span by `traceparent` and `tracestate` (W3C Trace Context), or none."""
        from opentelemetry.context import Context

        return self._propagator.extract(headers, Context())

    def carry(self, span: "Span") -> str:
        """The `traceparent` by which spans elsewhere belong to this one."""
        headers: dict[str, str] = {}
        self._propagator.inject(headers, self.within(span))
        return headers.get("traceparent", "")

    def close(self) -> None:
        """Blocking: send what waits, though not for long if no collector is there."""
        sending = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        sending.start()
        sending.join(FLUSH_S_MAX)


def end(span: "Span", failed: str = "", **attributes: Any) -> None:
    """`failed`: a fixed word for what went wrong."""
    if failed:
        from opentelemetry.trace import Status, StatusCode

        span.set_status(Status(StatusCode.ERROR, failed))
    span.set_attributes(dotted(attributes))
    span.end()


def dotted(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in attributes.items()}


def _installed() -> bool:
    try:
        return all(find_spec(name) is not None for name in _EXTRA)
    except ModuleNotFoundError:  # of a parent package
        return False
