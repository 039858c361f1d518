"""Traces by OpenTelemetry, as its conventions for HTTP and for generative AI say it, without anyone's words.

A request is a span, and what the model does for it another within it: what was asked of it, how many tokens it read and
said, and how that ended. Neither messages nor names of sessions are in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from beacon_memory.errors import ConfigError, MissingExtra
from beacon_memory.version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from beacon_memory.sessions.turn import Usage

NAME = "beacon-memory"
QUIET = ("/health", "/ready", "/metrics")  # asked for every few seconds, and told of nowhere


class Traces:
    """The spans of one server; without a tracer there are none."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """A span of a request, which goes on the trace that its `traceparent` names. What stands in the dictionary at
        its end is what it is told by.
        """
        about: dict[str, Any] = {}
        if self._tracer is None or path in QUIET:
            yield about
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(headers)
        with self._tracer.start_as_current_span(
            method, parent, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield about
            finally:
                span.update_name(f"{method} {about['route']}")
                span.set_attribute("http.request.method", method)
                span.set_attribute("http.route", about["route"])
                span.set_attribute("http.response.status_code", about["status"])
                if about["status"] >= 500:
                    span.set_attribute("error.type", str(about["status"]))
                    span.set_status(Status(StatusCode.ERROR))

    @contextmanager
    def answer(self, model: str) -> Iterator[dict[str, Any]]:
        """A span of an answer. What stands in the dictionary at its end is told with it."""
        about: dict[str, Any] = {}
        if self._tracer is None:
            yield about
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode

        # It is not made the current one: the answer is read in pieces, in between which other code runs.
        span = self._tracer.start_span(f"chat {model}", kind=SpanKind.INTERNAL)
        span.set_attribute("gen_ai.operation.name", "chat")
        span.set_attribute("gen_ai.provider.name", NAME)
        span.set_attribute("gen_ai.request.model", model)
        try:
            yield about
        except BaseException as exc:
            if not about:  # what was told whole may be left
                span.set_attribute("error.type", type(exc).__name__ if isinstance(exc, Exception) else "client_left")
                span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            span.set_attributes(about)
            span.end()


def spoken(usage: Usage, finish: str) -> dict[str, Any]:
    """What a whole answer took, in the conventions' words, and in slots."""
    return {
        "gen_ai.usage.input_tokens": usage.tokens,
        "gen_ai.usage.output_tokens": usage.answer,
        "gen_ai.usage.cache_read.input_tokens": usage.read,
        "gen_ai.usage.cache_creation.input_tokens": usage.folded,
        "gen_ai.response.finish_reasons": (finish,),
        "beacon.slots": usage.slots,
        "beacon.raw_tokens": usage.prefill,
    }


@contextmanager
def exported(url: str) -> Iterator[Tracer]:
    """A tracer whose spans are sent to a collector by OTLP over HTTP; the last of them on the way out.

    Raises ConfigError for what is no URL, MissingExtra.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise MissingExtra("traces need OpenTelemetry's packages: pip install 'beacon-memory[traces]'") from exc
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"traces are sent to a URL, such as http://localhost:4318/v1/traces, not {url!r:.80}")
    provider = TracerProvider(resource=Resource.create({"service.name": NAME, "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url)))
    try:
        yield provider.get_tracer(NAME, __version__)
    finally:
        provider.shutdown()
