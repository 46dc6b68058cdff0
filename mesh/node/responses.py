"""The responses of one request of a several-response version, counted one by one (Triton's `response_stats`)."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from mesh.core.errors import MeshError
from mesh.telemetry.statistics import Statistics


class Responses:
    """A context around the responses: counts each by its place, and what came in place of another one.

    That is the end (an empty response), an error, or a caller who left. `close` follows when all is cleaned up. A
    response's time begins when the one before it was sent, or the context was entered.
    """

    __slots__ = ("_at", "_began_ns", "_left_ns", "_made_ns", "_statistics")

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._at = 0
        """The place of the next response."""
        self._began_ns = self._made_ns = time.monotonic_ns()
        self._left_ns = 0
        """When the caller left; 0: it has not."""

    def __enter__(self) -> Self:
        """Begin."""
        self.sent()
        return self

    def made(self) -> None:
        """Note that the model made a response."""
        self._made_ns = time.monotonic_ns()

    def written(self) -> None:
        """Count the response that was made: its tensors are written."""
        now_ns = time.monotonic_ns()
        count = self._statistics.response(self._at)
        self._at += 1
        count.compute_infer.add(self._made_ns - self._began_ns)
        count.compute_output.add(now_ns - self._made_ns)
        count.success.add(now_ns - self._began_ns)

    def sent(self) -> None:
        """Begin the next."""
        self._began_ns = time.monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Count what came in place of another response. A request that was not run has none."""
        now_ns = time.monotonic_ns()
        if error is not None and not isinstance(error, Exception):
            self._left_ns = now_ns
        elif not (isinstance(error, MeshError) and error.retry_safe):
            count = self._statistics.response(self._at)
            count.compute_infer.add(now_ns - self._began_ns)
            (count.empty_response if error is None else count.fail).add(now_ns - self._began_ns)

    def close(self) -> None:
        """Count a caller who left, with the time that it took to stop the model and clean up."""
        if self._left_ns:
            self._statistics.response(self._at).cancel.add(time.monotonic_ns() - self._left_ns)
