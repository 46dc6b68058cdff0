"""What is remembered of one request until it ends: for the node's metrics, the copy's statistics and the span."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from mesh.core.errors import Code, code_of
from mesh.node.item import Ran
from mesh.node.served import Served
from mesh.telemetry.metrics import NodeMetrics
from mesh.telemetry.tracing import INPUT_BYTES, OUTPUT_BYTES, STEP, Tracing
from mesh.wire.transport import Metadata


class Observed:
    """A context around one request on one copy: counts it in and out, however it ends. Times are monotonic ns."""

    __slots__ = (
        "_metrics",
        "_served",
        "_span",
        "_started_ns",
        "_step",
        "_tracing",
        "input_bytes",
        "output_bytes",
        "ran",
        "ran_ns",
        "read_ns",
        "rows",
    )

    def __init__(
        self,
        metrics: NodeMetrics,
        tracing: Tracing,
        method: str,
        metadata: Metadata,
        served: Served,
        *,
        decided: bool = False,
        step: str = "",
    ) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._served = served
        self._started_ns = time.monotonic_ns()
        self._span: Any = None
        if tracing.on:
            self._span = tracing.start(method, metadata, kind="server", decided=decided)
        self._step = step
        self.input_bytes = 0
        """Of a step that is traced, and of its outputs."""
        self.output_bytes = 0
        self.rows = 1
        self.read_ns = self._started_ns
        """When the inputs had been read."""
        self.ran: Ran | None = None
        self.ran_ns = self._started_ns
        """When the run had ended."""

    @property
    def traced(self) -> bool:
        """Whether there is a span."""
        return self._span is not None

    def __enter__(self) -> Self:
        """Begin, and return itself."""
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self.end(error)

    def begin(self) -> None:
        """Count the request in."""
        self._served.enter()

    def end(self, error: BaseException | None) -> None:
        """Count the request by its outcome."""
        now_ns = time.monotonic_ns()
        total_ns = now_ns - self._started_ns
        served, ran = self._served, self.ran
        served.leave()
        code = Code.OK if error is None else code_of(error) if isinstance(error, Exception) else Code.CANCELLED
        queue_s, run_s = (ran.queue_s, ran.run_s) if ran is not None else (0.0, 0.0)
        statistics = served.statistics
        if error is None:
            statistics.answered(
                self.rows,
                total_ns=total_ns,
                queue_ns=int(queue_s * 1e9),
                input_ns=self.read_ns - self._started_ns,
                infer_ns=int(run_s * 1e9),
                output_ns=now_ns - self.ran_ns,
            )
        else:
            statistics.fail.add(total_ns)
        model = served.model
        self._metrics.request_done(
            model.name, model.version, code, queue_s=queue_s, compute_s=run_s, total_s=total_ns / 1e9
        )
        if self._span is not None:
            self._span.set_attributes(
                {
                    "mesh.model": model.name,
                    "mesh.version": model.version,
                    "mesh.queue_s": queue_s,
                    "mesh.compute_s": run_s,
                    "mesh.batch_size": ran.rows if ran is not None else 0,
                }
            )
            if self._step:
                self._span.set_attribute(STEP, self._step)
                self._span.set_attribute(INPUT_BYTES, self.input_bytes)
                self._span.set_attribute(OUTPUT_BYTES, self.output_bytes)
            self._tracing.end(self._span, code, str(error) if error is not None else "")
