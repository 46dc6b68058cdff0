"""Spans with the OpenTelemetry API, joined by W3C trace context in gRPC metadata, sent by OTLP over gRPC.

Off (no endpoint) it costs one attribute check per call and imports nothing of OpenTelemetry. Which spans exist and
what they are called is left to router and node; `docs/observability.md` lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, Literal

from mesh.core.errors import Code
from mesh.wire.transport import Metadata

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanContext, SpanKind

    from mesh.telemetry.sampling import RatioSampler

_SAMPLED: Final = frozenset({b"1", b"3", b"5", b"7", b"9", b"b", b"d", b"f", "1", "3", "5", "7", "9", "b", "d", "f"})
"""Last digits of a traceparent whose sampled flag, the lowest bit, is set (W3C Trace Context, trace-flags)."""

UNSAMPLED: Final = "00-4d657368000000000000000000000001-4d65736800000001-00"
"""The traceparent of requests that a router chose not to record: one for all, so that it costs nothing to send."""

Kind = Literal["server", "client", "internal"]
Attributes = Mapping[str, str | int | float | bool]

MODEL: Final = "mesh.model"
VERSION: Final = "mesh.version"
NODE: Final = "mesh.node"
PICK_S: Final = "mesh.pick_s"
QUEUE_S: Final = "mesh.queue_s"
COMPUTE_S: Final = "mesh.compute_s"
BATCH_SIZE: Final = "mesh.batch_size"
STEP: Final = "mesh.step"
INPUT_BYTES: Final = "mesh.input_bytes"
OUTPUT_BYTES: Final = "mesh.output_bytes"
RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.response.status_code"

SERVER_FAULTS: Final = frozenset(
    {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS}
)
"""Codes that make a server's span an error (OpenTelemetry's conventions for gRPC); the others are the caller's."""

SHUTDOWN_S: Final = 5.0
"""How long `shutdown` tries to send what is left."""


class Tracing:
    """Makes and ends spans. Safe to call from any thread."""

    __slots__ = ("_kinds", "_live", "on")

    def __init__(self, live: _Live | None = None) -> None:
        self._live = live
        self.on = live is not None
        """False: every method does nothing at once."""

    def start(
        self,
        name: str,
        metadata: Metadata = (),
        *,
        kind: Kind = "server",
        attributes: Attributes | None = None,
        decided: bool = False,
    ) -> Span | None:
        """Return a new span, None when tracing is off.

        Its parent is the one in `metadata` (``traceparent``, ``tracestate``), if there is one: the caller's metadata
        for a server, `headers` of the span above for a client or internal one. A `name` that is a method path
        ("/package.Service/Method") also gives the rpc attributes. `decided`: `wants` has chosen it. End it with `end`.
        """
        if decided and self._live is not None:
            self._live.sampler.decided = True
        return None if self._live is None else self._live.start(name, metadata, kind, attributes)

    def wants(self, traceparent: bytes | str, u: float) -> bool:
        """Decide before anything is made whether a request is to have a span; `u` is random in [0, 1). Cheap.

        A caller's decision (the flags of its W3C ``traceparent``) is followed; without one the ratio decides. When
        true, call `start` next with ``decided``.
        """
        live = self._live
        if live is None:
            return False
        if traceparent:
            return traceparent[-1:] in _SAMPLED
        return u < live.sampler.ratio

    def headers(self, span: Span | None) -> Metadata:
        """Return the metadata that makes `span` the parent of what the peer does; empty without a span."""
        return () if self._live is None or span is None else self._live.headers(span)

    def context_of(self, metadata: Metadata) -> SpanContext | None:
        """Return the span that `metadata` names, for a link; None without one, or when tracing is off."""
        return None if self._live is None else self._live.context_of(metadata)

    def end(self, span: Span | None, code: Code = Code.OK, message: str = "") -> None:
        """End `span` with the gRPC status of what it covers; `message` is kept when the code is an error."""
        if span is not None:
            _end(span, code, message)

    @property
    def sample_ratio(self) -> float:
        """The share of traces begun here that are recorded, 0 to 1; 0 when tracing is off."""
        return 0.0 if self._live is None else self._live.sampler.ratio

    def set_sample_ratio(self, ratio: float) -> None:
        """Change the share of traces begun here that are recorded; does nothing when tracing is off.

        Traces begun by a caller follow the caller's decision. Raises ValueError outside 0 to 1.
        """
        if self._live is not None:
            self._live.sampler.set_ratio(ratio)

    def shutdown(self) -> None:
        """Send what is left, at most `SHUTDOWN_S` seconds. Blocks: call it in a thread. Idempotent."""
        live, self._live, self.on = self._live, None, False
        if live is not None:
            live.shutdown()


OFF: Final = Tracing()
"""For processes and tests without tracing."""


def configure(service_name: str, *, node_or_router_id: str, sample_ratio: float, endpoint: str) -> Tracing:
    """Return tracing that sends to the OTLP gRPC `endpoint` ("http://host:4317"), or `OFF` when it is empty.

    A ``https://`` endpoint is spoken to over TLS, anything else in plaintext. `sample_ratio` (0 to 1) is the share of
    traces begun here that are recorded. Raises ValueError for a ratio outside 0 to 1.
    """
    if not 0.0 <= sample_ratio <= 1.0:
        raise ValueError(f"expected a sampling ratio from 0 to 1, got {sample_ratio}")
    if not endpoint:
        return OFF
    return Tracing(_Live(service_name, node_or_router_id, sample_ratio, endpoint))


class _Live:
    """Tracing that is on. OpenTelemetry is imported here, so that processes without tracing start without it."""

    def __init__(self, service_name: str, instance_id: str, sample_ratio: float, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.trace import SpanKind  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        from mesh.telemetry.sampling import RatioSampler  # noqa: PLC0415

        self.sampler: RatioSampler = RatioSampler(sample_ratio)
        resource = Resource.create({"service.name": service_name, "service.instance.id": instance_id})
        self._provider: TracerProvider = TracerProvider(
            sampler=self.sampler.by_parent(), resource=resource, shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"), timeout=SHUTDOWN_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("mesh")
        self._propagator = TraceContextTextMapPropagator()
        self._kinds: Mapping[Kind, SpanKind] = {
            "server": SpanKind.SERVER,
            "client": SpanKind.CLIENT,
            "internal": SpanKind.INTERNAL,
        }

    def start(self, name: str, metadata: Metadata, kind: Kind, attributes: Attributes | None) -> Span:
        from opentelemetry.context import Context  # noqa: PLC0415 - see the class

        parent = self._propagator.extract(carrier=_carrier(metadata), context=Context())
        given: dict[str, str | int | float | bool] = dict(attributes or ())
        if name.startswith("/"):
            name = name[1:]
            given[RPC_SYSTEM] = "grpc"
            given[RPC_METHOD] = name
        try:
            return self._tracer.start_span(name, context=parent, kind=self._kinds[kind], attributes=given)
        finally:
            self.sampler.decided = False

    def context_of(self, metadata: Metadata) -> SpanContext | None:
        from opentelemetry.context import Context  # noqa: PLC0415 - see the class
        from opentelemetry.trace import get_current_span  # noqa: PLC0415

        found = get_current_span(self._propagator.extract(carrier=_carrier(metadata), context=Context()))
        context = found.get_span_context()
        return context if context.is_valid else None

    def headers(self, span: Span) -> Metadata:
        from opentelemetry.context import Context  # noqa: PLC0415 - see the class
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context=set_span_in_context(span, Context()))
        return tuple(carrier.items())

    def shutdown(self) -> None:
        self._provider.force_flush(int(SHUTDOWN_S * 1000))
        self._provider.shutdown()


def _carrier(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    return {key: value for key, value in metadata if isinstance(value, str) and key in {"traceparent", "tracestate"}}


def _end(span: Span, code: Code, message: str) -> None:
    if span.is_recording():
        from opentelemetry.trace import SpanKind, Status, StatusCode  # noqa: PLC0415 - off needs no OpenTelemetry

        span.set_attribute(RPC_STATUS, code.name)
        serving = getattr(span, "kind", None) is SpanKind.SERVER
        if code in SERVER_FAULTS or (code is not Code.OK and not serving):
            span.set_status(Status(StatusCode.ERROR, message))
    span.end()
