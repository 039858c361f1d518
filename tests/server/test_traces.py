"""Traces: a span for a request, one within it for its answer, in OpenTelemetry's words and nobody else's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Queue
from threading import Thread
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode

from beacon_memory.errors import ConfigError
from beacon_memory.server.operations.traces import exported
from beacon_memory.testing import beacon_server, scripted_engine

SECRET = "quicksilver"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = "/v1/chat/completions"


class Traced(SpanExporter):
    """A tracer's spans, which may be made after the client has its answer."""

    def __init__(self) -> None:
        self._made = Queue[ReadableSpan]()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self))
        self.tracer = provider.get_tracer("test")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            self._made.put(span)
        return SpanExportResult.SUCCESS

    def taken(self, count: int) -> list[ReadableSpan]:
        """The next spans, so many, and no more."""
        spans = [self._made.get(timeout=30) for _ in range(count)]
        assert self._made.empty()
        return spans


@pytest.fixture(scope="module")
def traced() -> Traced:
    return Traced()


@pytest.fixture(scope="module")
def http(traced: Traced) -> Iterator[httpx.Client]:
    engine = scripted_engine(lambda seen: "Hello there!")
    with beacon_server(engine, tracer=traced.tracer) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield http


def asked(**more: Any) -> dict[str, Any]:
    said = {"role": "user", "content": f"My word is {SECRET}. " * 20}
    return {"model": "scripted", "session_id": SECRET, "messages": [said], **more}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_a_span_within_that_of_its_request(http: httpx.Client, traced: Traced, stream: bool) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    told = asked(stream=stream, stream_options={"include_usage": True}) if stream else asked()
    answer = http.post(CHAT, json=told, headers=headers)
    usage = json.loads(answer.text.splitlines()[-4][6:])["usage"] if stream else answer.json()["usage"]
    chat, request = traced.taken(2)
    assert (chat.name, request.name) == ("chat scripted", f"POST {CHAT}")
    assert f"{request.context.trace_id:032x}" == f"{chat.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert chat.parent.span_id == request.context.span_id
    assert request.attributes is not None
    assert request.attributes["http.route"] == CHAT
    assert request.attributes["http.response.status_code"] == 200
    said = dict(chat.attributes or {})
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.model"] == "scripted"
    assert said["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert said["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert said["gen_ai.usage.cache_read.input_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert said["gen_ai.response.finish_reasons"] == ("stop",)
    assert chat.status.status_code is StatusCode.UNSET
    assert SECRET not in chat.to_json() + request.to_json()


def test_a_request_that_is_refused_has_no_answer_and_says_why_by_its_status(http: httpx.Client, traced: Traced) -> None:
    http.get(f"/v1/sessions/{SECRET}")
    http.get(f"/{SECRET}")
    first, second = traced.taken(2)
    assert first.name == "GET /v1/sessions/{session}"
    assert second.name == "GET none"
    assert SECRET not in first.to_json() + second.to_json()


def test_an_answer_that_fails_is_told_by_the_class_of_its_error(http: httpx.Client, traced: Traced) -> None:
    assert http.post(CHAT, json=asked(context_id=f"{SECRET}-none")).status_code == 400
    chat, request = traced.taken(2)
    assert chat.attributes is not None
    assert chat.attributes["error.type"] == "InputError"
    assert chat.status.status_code is StatusCode.ERROR
    assert request.status.status_code is StatusCode.UNSET  # the client's mistake
    assert SECRET not in chat.to_json()


def test_health_and_metrics_make_no_spans(http: httpx.Client, traced: Traced) -> None:
    for path in ("/health", "/ready", "/metrics"):
        assert http.get(path).status_code == 200
    assert traced.taken(0) == []


def test_spans_are_sent_to_a_collector_the_last_on_the_way_out() -> None:
    got: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = Thread(target=collector.serve_forever)
        thread.start()
        try:
            with exported(f"http://127.0.0.1:{collector.server_port}/v1/traces") as tracer:
                tracer.start_span("one").end()
        finally:
            collector.shutdown()
            thread.join()
    resources = [one for request in got for one in request.resource_spans]
    assert [span.name for one in resources for scope in one.scope_spans for span in scope.spans] == ["one"]
    assert {one.key: one.value.string_value for one in resources[0].resource.attributes}["service.name"] == (
        "beacon-memory"
    )


def test_what_is_no_url_of_a_collector_is_refused() -> None:
    with pytest.raises(ConfigError, match="4318"), exported("localhost:4318"):
        pass
