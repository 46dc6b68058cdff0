"""What is remembered of one request until it ends, for its metrics and its span."""

from __future__ import annotations

import random
import time
from types import TracebackType
from typing import Any, Final, Self

from mesh.core.errors import Code, code_of
from mesh.core.traffic.retry import Tries
from mesh.core.types import ModelVersion, NodeId
from mesh.telemetry.metrics import RouterMetrics
from mesh.telemetry.tracing import MODEL, NODE, PICK_S, UNSAMPLED, VERSION, Tracing
from mesh.wire.heads import RequestHead, metadata_block
from mesh.wire.transport import Call, Metadata


class Observed:
    """A context around one request: counts it and ends its span, however it ends."""

    __slots__ = (
        "_has_parent", "_metrics", "_span", "_started_s", "_tracing", "attempts", "model", "node", "picked_s", "tries",
    )  # fmt: skip

    def __init__(
        self,
        metrics: RouterMetrics,
        tracing: Tracing,
        call: Call,
        *,
        traced: bool | None = None,
        tries: Tries | None = None,
    ) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._started_s = time.monotonic()
        self._span: Any = None
        self._has_parent = False
        if tracing.on:
            parent = call.meta("traceparent") or ""
            self._has_parent = bool(parent)
            if tracing.wants(parent, random.random()) if traced is None else traced:  # noqa: S311 - a share of traces
                self._span = tracing.start(call.method, call.metadata, kind="server", decided=not parent)
        self.model: ModelVersion | None = None
        self.node: NodeId | None = None
        self.tries = Tries() if tries is None else tries
        """What failed of it so far, on another path too."""
        self.attempts = self.tries.failures
        self.picked_s = 0.0
        """Seconds spent until a copy was picked, waiting for a cold model included."""

    @property
    def traced(self) -> bool:
        """Whether a span of ours goes on to the node, in place of the caller's."""
        return self._span is not None

    def headers(self) -> Metadata:
        """Return the trace metadata for the node; what came goes on when there is no span here."""
        if self._span is not None:
            return self._tracing.headers(self._span)
        return (("traceparent", UNSAMPLED),) if self._tracing.on and not self._has_parent else ()

    def asked(self, node: NodeId) -> None:
        """Note that a node was picked."""
        if not self.attempts:
            self.picked_s = time.monotonic() - self._started_s
        self.attempts += 1
        self.node = node

    def lasted_s(self) -> float:
        """Return for how many seconds it has gone on."""
        return time.monotonic() - self._started_s

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Count the request by its outcome."""
        code = Code.OK if error is None else code_of(error) if isinstance(error, Exception) else Code.CANCELLED
        name, version = (self.model.name, self.model.version) if self.model is not None else ("", "")
        self._metrics.request_done(
            name, version, code, total_s=time.monotonic() - self._started_s, attempts=self.attempts
        )
        if self._span is not None:
            self._span.set_attribute("mesh.model", name)
            self._span.set_attribute("mesh.version", version)
            self._span.set_attribute("mesh.pick_s", self.picked_s)
            if self.node is not None:
                self._span.set_attribute("mesh.node", self.node)
            self._tracing.end(self._span, code, str(error) if error is not None else "")


class HopSpan:
    """The span of one request on the wire's own path, and the headers that make it the node's parent."""

    __slots__ = ("_span", "_tracing", "block")

    def __init__(self, tracing: Tracing, span: Any) -> None:
        self._tracing = tracing
        self._span = span
        self.block = metadata_block(tracing.headers(span))
        """HPACK bytes of the trace headers."""

    def end(self, code: Code, error: str, *, model: str, version: str, node: str, picked_s: float) -> None:
        """End it with the status of the request."""
        span = self._span
        span.set_attribute(MODEL, model)
        span.set_attribute(VERSION, version)
        span.set_attribute(PICK_S, picked_s)
        if node:
            span.set_attribute(NODE, node)
        self._tracing.end(span, code, error)


def hop_span(tracing: Tracing, head: RequestHead, traceparent: bytes) -> HopSpan | None:
    """Return a span for a request with this head, None when it is not to be recorded."""
    if not tracing.wants(traceparent, random.random()):  # noqa: S311 - a share of traces
        return None
    span = tracing.start(head.path.decode("latin-1"), head.metadata, kind="server", decided=not traceparent)
    return None if span is None else HopSpan(tracing, span)


UNSAMPLED_BLOCK: Final = metadata_block((("traceparent", UNSAMPLED),))
"""HPACK bytes for a request that is not recorded and whose caller said nothing."""
