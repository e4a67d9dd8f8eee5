"""Spans reach an OTLP endpoint, as children of the caller's span."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector():
    """A receiver of OTLP over HTTP; yields its URL and the spans that came in."""
    spans = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
            spans.extend(s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    thread.join()
    server.server_close()


def test_spans(boot, collector) -> None:
    endpoint, spans = collector
    cloud = boot("--models", "smollm2-135m", environment={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    secret = "the prompt that nobody may see"
    body = {"model": "max", "max_tokens": 4, "messages": [{"role": "user", "content": secret}]}
    headers = {"Authorization": f"Bearer {cloud.key}", "traceparent": PARENT}
    answer = httpx.post(f"{cloud.url}/v1/chat/completions", json=body, headers=headers, timeout=60).json()
    assert cloud.stop() == 0

    (span,) = spans
    attributes = {a.key: a.value for a in span.attributes}
    assert span.name == "chat smollm2-135m"
    assert span.trace_id.hex() == PARENT.split("-")[1]
    assert span.parent_span_id.hex() == PARENT.split("-")[2]
    assert attributes["gen_ai.usage.output_tokens"].int_value == answer["usage"]["completion_tokens"]
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 60e9
    assert secret not in str(span)
