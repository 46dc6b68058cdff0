"""How many copies a model should have, from the requests that were in flight for it.

The rules are those of Knative's pod autoscaler (Knative Serving, "Autoscaling concepts"), a copy being its pod: the
average concurrency of a stable window over what one copy should carry; a panic window that notices a burst, during
which copies are only added; one copy less at a time. Pure: samples and clocks come from the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

from mesh.core.placement.window import Window
from mesh.core.types import ScaleToZero, Scaling

_ROUNDING: Final = 1e-9

_LEAST_CARRIED: Final = 1e-6
"""Requests in flight that a copy is said to carry at least: a `target` of next to nothing overflows no division."""

_REMEMBERED_S: Final = 3600.0
"""A model without a sample for so long is forgotten, if no rule of its own looks back further."""

_USUAL: Final = Scaling()


@dataclass(frozen=True, slots=True)
class Desired:
    """How many copies a model should have, and why."""

    copies: int
    why: str
    panic: bool = False
    """Whether it is in panic mode: copies are only added."""


class Scaler:
    """The demand of one model and what was decided for it. `sample`s come in the order of time.

    `begun_s` is since when its demand is watched: nobody knows whether it was used before.
    """

    def __init__(self, begun_s: float = float("-inf")) -> None:
        self._begun_s = begun_s
        self._window = Window(_USUAL.window_s)
        self._remembered_s = _REMEMBERED_S
        self._panic_until_s = float("-inf")
        self._panic_copies = 0
        self._lowered_s = float("-inf")
        self.last_used_s = float("-inf")

    def sample(self, since_s: float, now_s: float, in_flight: float) -> None:
        """Note that `in_flight` requests were at work on average between two times."""
        if now_s > since_s:
            self._window.add(since_s, now_s, in_flight)
            if in_flight > 0:
                self.last_used_s = now_s

    def average(self, window_s: float, now_s: float) -> float:
        """Return the requests in flight, averaged over the last `window_s` seconds as far as they are known."""
        return self._window.average(window_s, now_s)

    def desired(self, scaling: Scaling, *, ready: int, now: int, nodes: int, now_s: float) -> Desired:
        """Return how many copies there should be, of `now` that there are or are being loaded, `ready` of them ready.

        `nodes` is how many could hold one. Calling it again at the same time with the same numbers changes nothing.
        O(seconds of the window).
        """
        self._remember(scaling)
        carried = max(_LEAST_CARRIED, scaling.target * scaling.target_utilization)
        stable, burst = self.average(scaling.window_s, now_s), self.average(scaling.panic_window_s, now_s)
        wanted = ceil(stable / carried - _ROUNDING)
        for_burst = ceil(burst / carried - _ROUNDING)
        why = f"{stable:.2f} in flight over {scaling.window_s:g} s, {carried:g} per copy"
        if for_burst >= scaling.panic_threshold * max(1, ready):
            self._panic_until_s = now_s + scaling.window_s
        panic = now_s < self._panic_until_s
        if panic:
            self._panic_copies = wanted = max(wanted, for_burst, self._panic_copies, now)
            why = f"a burst: {burst:.2f} in flight over {scaling.panic_window_s:g} s, {carried:g} per copy"
        else:
            self._panic_copies = 0
        wanted = max(wanted, self._least(scaling, now, now_s))
        highest = min(scaling.max_copies or nodes, max(1, nodes))
        wanted = max(scaling.min_copies, min(wanted, highest))
        if wanted < now:
            wanted = self._one_less(scaling, now, now_s)
            why = f"{why}; one copy less at a time"
        return Desired(wanted, why, panic)

    def lowered(self, now_s: float) -> None:
        """Note that a copy was taken away: the next one goes a window later at the earliest."""
        self._lowered_s = now_s

    def is_idle(self, now_s: float) -> bool:
        """Tell whether nothing is left to remember."""
        return now_s - max(self._window.until_s, self._lowered_s) > self._remembered_s

    def _remember(self, scaling: Scaling) -> None:
        """Look back as far as the longest of the model's own rules does."""
        self._window.widen(scaling.window_s)
        idle_s = scaling.idle_s if scaling.scale_to_zero is ScaleToZero.IDLE else 0.0
        self._remembered_s = max(_REMEMBERED_S, idle_s, scaling.window_s)

    def _least(self, scaling: Scaling, now: int, now_s: float) -> int:
        """Return 1 while the last copy stays: always under pressure's rule, for `idle_s` under the idle rule."""
        if scaling.scale_to_zero is ScaleToZero.PRESSURE:
            return min(1, now)
        return 1 if now_s - max(self.last_used_s, self._begun_s) < scaling.idle_s else 0

    def _one_less(self, scaling: Scaling, now: int, now_s: float) -> int:
        """Return one copy less, once per window and not in the first.

        A leader that has just begun has seen too little to take anything away. (Knative's autoscaler starts in panic
        mode with the pods that it finds, for the same reason: knative/serving#4795.)
        """
        since_s = max(self._lowered_s, self._begun_s)
        if self._window.since_s is not None:
            since_s = max(since_s, self._window.since_s)
        return now - 1 if now_s - since_s >= scaling.window_s else now

    def __repr__(self) -> str:
        """Show how much is known."""
        return f"<Scaler {self._window!r} panic={self._panic_copies}>"
