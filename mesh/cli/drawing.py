"""A pipeline drawn in the terminal, with what went on in each of its steps just now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.cli.tables import milliseconds, table

NOTHING: Final = ("-", "-", "-", "-")


@dataclass(frozen=True)
class Live:
    """What went on between two looks at one of ModelStatistics."""

    per_s: float
    failed_per_s: float
    mean_s: float
    queue_s: float
    compute_s: float

    @classmethod
    def between(cls, before: Any, now: Any, seconds: float) -> Live:
        """Return the rates and the mean times; zeros when nothing came."""

        def grown(stage: str) -> tuple[int, int]:
            new = getattr(now.inference_stats, stage)
            if before is None:
                return new.count, new.ns
            old = getattr(before.inference_stats, stage)
            return new.count - old.count, new.ns - old.ns

        (count, total_ns), (failed, _), over_s = grown("success"), grown("fail"), seconds or 1.0
        ns = max(1, count) * 1e9
        queue_s, compute_s = (grown(stage)[1] / ns for stage in ("queue", "compute_infer"))
        return cls(count / over_s, failed / over_s, total_ns / ns, queue_s, compute_s)

    def told(self) -> tuple[str, ...]:
        """Return rate, latency, queue and compute time as people read them."""
        if not self.per_s and not self.failed_per_s:
            return NOTHING
        rate = f"{self.per_s:.1f}/s" + (f", {self.failed_per_s:.1f} failed" if self.failed_per_s else "")
        return rate, *(milliseconds(each) if each else "-" for each in (self.mean_s, self.queue_s, self.compute_s))


def lively(before: Any, now: Any, seconds: float) -> dict[str, Live]:
    """Return what went on between two answers of ModelStatistics, by name."""
    old = {each.name: each for each in before.model_stats}
    return {each.name: Live.between(old.get(each.name), each, seconds) for each in now.model_stats}


def drawn(found: Any, metadata: Any, cut: Any, live: Mapping[str, Live]) -> str:
    """Return a pipeline as text: its inputs, a line for each step under those it waits for, its outputs."""
    whole = live.get(found.name)
    rate, mean, _, _ = whole.told() if whole is not None else NOTHING
    where = f"in one hop on {' or '.join(cut.together)}" if cut.together else "in parts"
    lines = [f"{found.name}, revision {found.revision}, runs {where}: {rate}, {mean} each (as this router sees it)", ""]
    lines += [f"  ${each.name}  {each.datatype} {list(each.shape)}" for each in metadata.inputs]
    steps = {step.name: step for step in found.steps}
    nodes = {} if cut.together else {each.step: each.node or "router" for each in cut.steps}
    deep: dict[str, int] = {}
    rows = []
    for each in cut.steps:
        step = steps[each.step]
        sources = [source for _, source in sorted(step.inputs.items())]
        before = {ref.strip().partition(".")[0] for source in sources for ref in source.split("|")}
        deep[each.step] = 1 + max((deep.get(name, -1) for name in before), default=-1)
        shown = live.get(f"{found.name}.{each.step}")
        told = shown.told() if shown is not None else NOTHING
        given = ", ".join(f"{to} <- {source}" for to, source in sorted(step.inputs.items()))
        named = f"{'   ' * deep[each.step]}└▶ {each.step}"
        model = f"{step.model}{'/' + step.version if step.version else ''}"
        rows.append((named, model, given, nodes.get(each.step, ""), *told, _how(step)))
    lines += ["", table(("step", "model", "inputs", "node", "rate", "latency", "queue", "compute", "how"), rows), ""]
    kinds = {each.name: f"{each.datatype} {list(each.shape)}" for each in metadata.outputs}
    lines += [f"  {to} <- {source}  {kinds.get(to, '')}" for to, source in sorted(found.outputs.items())]
    return "\n".join(line.rstrip() for line in lines)


def _how(step: Any) -> str:
    said = [f"when {step.when}" if step.when else "", f"each {', '.join(step.each)}" if step.each else ""]
    said += [
        f"timeout {step.timeout_s:g} s" if step.timeout_s else "",
        f"{step.retries} retries" if step.retries else "",
    ]
    said.append(f"on error {step.on_error.use}" if step.on_error.use else "")
    return ", ".join(each for each in said if each)
