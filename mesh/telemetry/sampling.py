"""A sampler whose ratio can be changed while it is in use (TraceSetting does). Imported only when tracing is on."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes


class RatioSampler(Sampler):
    """Records the share `ratio` (0 to 1) of traces, decided by the trace id, so that processes agree."""

    def __init__(self, ratio: float) -> None:
        self._inner = TraceIdRatioBased(ratio)
        self.decided = False
        """Set just before a span is started that was chosen already (`Tracing.wants`): it is recorded."""

    @property
    def ratio(self) -> float:
        """The share of traces that are recorded."""
        return self._inner.rate

    def set_ratio(self, ratio: float) -> None:
        """Change the share, for traces that begin from now on. Raises ValueError outside 0 to 1."""
        self._inner = TraceIdRatioBased(ratio)

    def by_parent(self) -> Sampler:
        """Return the sampler that follows a parent's decision and asks this one where there is no parent."""
        return ParentBased(self)

    def should_sample(  # noqa: PLR0917 - the SDK's signature
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide one trace (the SDK calls this)."""
        if self.decided:
            self.decided = False
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, trace_state)
        return self._inner.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """Describe it as the SDK's own ratio sampler does."""
        return self._inner.get_description()
