"""What ModelStatistics tells of one copy or one step: counts and nanoseconds per stage, and per batch size.

The stages are Triton's: queue (until a run takes the request), compute_input (bytes to arrays), compute_infer (the
run), compute_output (arrays to bytes). A run of several requests counts once in execution_count and for each request
in its stages.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.api.gen.inference import grpc_service_pb2 as pb


@dataclass(slots=True)
class Duration:
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one."""
        self.count += 1
        self.ns += ns

    def message(self) -> Any:
        """Return it as the protocol's StatisticDuration."""
        return pb.StatisticDuration(count=self.count, ns=self.ns)


MOST_RESPONSES: Final = 256
"""Responses of one request that are counted one by one; those behind them together, as ``256+``."""


@dataclass(slots=True)
class ResponseStatistics:
    """What is counted of the responses that were each the first, second, ... of their request."""

    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    empty_response: Duration = field(default_factory=Duration)
    cancel: Duration = field(default_factory=Duration)

    def message(self) -> Any:
        """Return the protocol's InferResponseStatistics."""
        return pb.InferResponseStatistics(
            compute_infer=self.compute_infer.message(),
            compute_output=self.compute_output.message(),
            success=self.success.message(),
            fail=self.fail.message(),
            empty_response=self.empty_response.message(),
            cancel=self.cancel.message(),
        )


@dataclass(slots=True)
class Statistics:
    """The counters of one copy since it was loaded, or of a step here. Touched from the event loop only."""

    last_inference_ns: int = 0
    inferences: int = 0
    executions: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, Duration] = field(default_factory=dict)
    responses: dict[int, ResponseStatistics] = field(default_factory=dict)
    """Of a model with several responses, by their place in their request."""

    def response(self, at: int) -> ResponseStatistics:
        """Return the counters of the response at this place of its request, from 0."""
        at = min(at, MOST_RESPONSES)
        found = self.responses.get(at)
        if found is None:
            found = self.responses[at] = ResponseStatistics()
        return found

    def executed(self, rows: int, run_ns: int) -> None:
        """Count one run over `rows` rows."""
        self.executions += 1
        self.batches.setdefault(rows, Duration()).add(run_ns)

    def answered(
        self, rows: int, *, total_ns: int, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int
    ) -> None:
        """Count one request that was answered, with the nanoseconds of its stages."""
        self.inferences += rows
        self.last_inference_ns = time.time_ns()
        for duration, ns in (
            (self.success, total_ns),
            (self.queue, queue_ns),
            (self.compute_input, input_ns),
            (self.compute_infer, infer_ns),
            (self.compute_output, output_ns),
        ):
            duration.count += 1
            duration.ns += ns

    def stepped(self, count: int, rows: int, run_ns: int) -> None:
        """Count requests of a step that ran together without a queue, each of which took `run_ns`."""
        self.inferences += rows
        self.last_inference_ns = time.time_ns()
        for duration in (self.success, self.compute_infer):
            duration.count += count
            duration.ns += run_ns * count
        for duration in (self.queue, self.compute_input, self.compute_output):
            duration.count += count

    def message(self, name: str, version: str, bytes_held: int) -> Any:
        """Return the protocol's ModelStatistics."""
        answer = pb.ModelStatistics(
            name=name,
            version=version,
            last_inference=self.last_inference_ns // 1_000_000,
            inference_count=self.inferences,
            execution_count=self.executions,
            inference_stats=pb.InferStatistics(
                success=self.success.message(),
                fail=self.fail.message(),
                queue=self.queue.message(),
                compute_input=self.compute_input.message(),
                compute_infer=self.compute_infer.message(),
                compute_output=self.compute_output.message(),
            ),
            memory_usage=[pb.MemoryUsage(type="CPU", byte_size=bytes_held)] if bytes_held else [],
        )
        for rows, duration in sorted(self.batches.items()):
            answer.batch_stats.add(batch_size=rows, compute_infer=duration.message())
        for at, each in sorted(self.responses.items()):
            key = str(at) if at < MOST_RESPONSES else f"{MOST_RESPONSES}+"
            answer.response_stats[key].CopyFrom(each.message())
        return answer


class StepStatistics:
    """The counters of the steps of pipelines that ran in this process, by pipeline and step."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, Statistics]] = {}

    def of(self, pipeline: str, step: str) -> Statistics:
        """Return the counters of a step."""
        steps = self._of.get(pipeline)
        if steps is None:
            steps = self._of[pipeline] = {}
        found = steps.get(step)
        if found is None:
            found = steps[step] = Statistics()
        return found

    def messages(self, pipeline: str, known: Collection[str]) -> list[Any]:
        """Return the protocol's ModelStatistics of each step of a pipeline, named ``pipeline.step``.

        What is not in `known`, the pipelines that there are, is forgotten.
        """
        for name in [name for name in self._of if name not in known]:
            del self._of[name]
        return [each.message(f"{pipeline}.{step}", "", 0) for step, each in sorted(self._of.get(pipeline, {}).items())]

    def __repr__(self) -> str:
        """Show the pipelines."""
        return f"<StepStatistics {sorted(self._of)}>"
