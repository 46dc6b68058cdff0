"""One trace for each session: a span of the session, and under it one for each step, with links to its callers' spans.

The session's span begins with the first step that is recorded and ends with the session. What steps took on the node
is in the node's metrics: a stream's headers say nothing of single steps.
"""

from __future__ import annotations

import random
from typing import Any

from mesh.core.errors import Code, MeshError, code_of
from mesh.router.live import Live, Step
from mesh.telemetry.tracing import MODEL, NODE, VERSION, Tracing
from mesh.wire.transport import Call


class SessionTrace:
    """The span of one session."""

    __slots__ = ("_span", "_tracing")

    def __init__(self, tracing: Tracing, span: Any) -> None:
        self._tracing = tracing
        self._span = span

    def step(self, live: Live, step: Step, call: Call) -> Step:
        """Return `step` with a span of its own, which is linked to the span of whoever asked for it."""
        attributes = {MODEL: str(live.model.name), VERSION: str(live.model.version)}
        span = self._tracing.start(
            "session step", self._tracing.headers(self._span), kind="internal", attributes=attributes
        )
        caller = self._tracing.context_of(call.metadata)
        if span is not None and caller is not None and caller.trace_id != span.get_span_context().trace_id:
            span.add_link(caller)
        return TracedStep(step, self._tracing, span, live)

    def failed_over(self, node: str) -> None:
        """Note that the session's node went away."""
        self._span.add_event("failover", {NODE: node})

    def end(self) -> None:
        """End the session's span. Idempotent."""
        span, self._span = self._span, None
        if span is not None:
            self._tracing.end(span)


class TracedStep:
    """A `Step` that ends its span."""

    __slots__ = ("_live", "_span", "_step", "_tracing")

    def __init__(self, step: Step, tracing: Tracing, span: Any, live: Live) -> None:
        self._step = step
        self._tracing = tracing
        self._span = span
        self._live = live

    def answer(self, response: bytes, state: bytes) -> None:
        """Pass the answer on."""
        self._end(Code.OK, "")
        self._step.answer(response, state)

    def fail(self, error: MeshError) -> None:
        """Pass the error on."""
        self._end(code_of(error), error.message)
        self._step.fail(error)

    def _end(self, code: Code, said: str) -> None:
        if self._span is not None:
            if self._live.located is not None:
                self._span.set_attribute(NODE, self._live.located.node.id)
            self._tracing.end(self._span, code, said)


def traced(tracing: Tracing, live: Live, step: Step, call: Call) -> Step:
    """Return `step` with a span where the session is recorded: as the caller of its first step wished, or by chance."""
    if live.trace is None and not live.untraced:
        parent = call.meta("traceparent") or ""
        if tracing.wants(parent, random.random()):  # noqa: S311 - a share of traces
            span = tracing.start(f"session {live.model.name}", call.metadata, kind="server", decided=not parent)
            live.trace = SessionTrace(tracing, span) if span is not None else None
        live.untraced = live.trace is None
    return step if live.trace is None else live.trace.step(live, step, call)
