"""Traces of requests, with the real SDK and an exporter in memory."""

from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from service.telemetry import Tracing


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS


@pytest.mark.parametrize(("parent", "expected"), [(b"01", 2), (b"00", 0)])
def test_the_caller_decides_what_is_traced(parent: bytes, expected: int) -> None:
    """A caller's trace is continued, stages lie within the request, and a caller who does not trace is not traced."""
    kept = Kept()
    tracing = Tracing(None, share=1.0, exporter=kept)
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {b"traceparent": f"00-{trace_id}-b7ad6b7169203331-".encode() + parent}
    with tracing.request("anomaly_score", headers), tracing.stage("decode"):
        pass
    tracing.shutdown()
    assert len(kept.spans) == expected
    for span in kept.spans:
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == trace_id
    if expected:
        stage, request = kept.spans
        assert stage.parent is not None
        assert request.context is not None
        assert stage.parent.span_id == request.context.span_id


def test_without_a_collector_there_is_no_trace() -> None:
    """Nothing is made where no collector is set."""
    tracing = Tracing(None, share=1.0)
    with tracing.request("encode", {}) as span:
        assert span is None
    assert not tracing.enabled
