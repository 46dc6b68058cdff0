"""A real OTLP receiver for tests: an OpenTelemetry collector's trace service that keeps what it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc


class Receiver(otlp_grpc.TraceServiceServicer):
    """Keeps the spans a real OTLP exporter sends, with the resource they came from."""

    def __init__(self) -> None:
        self.spans: list[tuple[dict[str, Any], Any]] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the proto says so
        for resource in request.resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans.extend((names, span) for span in scope.spans)
        return otlp.ExportTraceServiceResponse()

    def named(self, name: str) -> Any:
        (found,) = [span for _, span in self.spans if span.name == name]
        return found


@contextmanager
def receiving() -> Iterator[tuple[Receiver, str]]:
    """Run a receiver; give it and its endpoint."""
    servicer = Receiver()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    otlp_grpc.add_TraceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield servicer, f"http://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}
