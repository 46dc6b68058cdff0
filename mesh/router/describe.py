"""From the view and from decisions to mesh.v1's messages: models with their state, and explanations."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mesh.api.clock import steady_s
from mesh.api.describe import copy_message
from mesh.api.messages import control
from mesh.core.pipeline.cut import Places, edges
from mesh.core.pipeline.run import Graph
from mesh.core.pipeline.spec import Step
from mesh.core.placement.explain import Explained
from mesh.core.placement.progress import progress
from mesh.core.placement.scores import SCORES
from mesh.core.suspects import history, quarantined_s, told
from mesh.core.types import CopyState, ModelVersion, NodeId
from mesh.core.view import ClusterView, VersionKey
from mesh.router.plans import Plans


def state_of(view: ClusterView, key: VersionKey) -> tuple[str, str]:
    """Return "ready", "loading", "cold", "unloaded", "failed" or "quarantined", and why, or how far its load is."""
    copies = view.copies.get(key, ())
    states = {each.copy.state for each in copies}
    if view.is_off(key):
        return "unloaded", ""
    suspect, now_s = view.suspects.get(key), steady_s()
    model = view.models.get(key[0], {}).get(key[1])
    left_s = quarantined_s(suspect, model.digest, now_s) if model is not None else 0.0
    if suspect is not None and left_s:
        return "quarantined", told(suspect, left_s).removeprefix("quarantined ")
    if view.serving.get(key):
        return "ready", ""
    if CopyState.LOADING in states:
        return "loading", "; ".join(each.told for each in progress(view, key))
    if CopyState.FAILED in states:
        return "failed", "; ".join(sorted({each.copy.error for each in copies if each.copy.error}))
    return "cold", ""


def model_message(view: ClusterView, model: ModelVersion) -> control.Model:
    """Return a version with its state and copies as mesh.v1 shows it."""
    key = (model.name, model.version)
    state, reason = state_of(view, key)
    ahead = {each.node: each.ahead for each in progress(view, key)}
    return control.Model(
        name=model.name,
        version=model.version,
        runtime=model.runtime,
        state=state,
        size_bytes=model.size_bytes,
        digest=model.digest,
        reason=reason,
        copies=[
            copy_message(each.copy, each.node.id, loads_before=ahead.get(each.node.id, 0))
            for each in view.copies.get(key, ())
        ],
    )


def explanation(view: ClusterView, explained: Explained) -> control.Explanation:
    """Return a placement decision as mesh.v1 shows it."""
    asked, choice = explained.asked, explained.choice
    model = asked.model
    held = {id_: copy.state.value for id_, copy in asked.copies.items()}
    verdicts = [
        control.Verdict(
            node=each.on.id,
            device=each.room.device.label,
            evicts_bytes=each.room.evicts_bytes,
            loss=each.room.loss,
            scores=[
                control.Score(name=name, value=value, weight=weight)
                for (name, _, weight), value in zip(SCORES, each.scores, strict=True)
            ],
            total=each.total,
            copy=held.get(each.on.id, ""),
        )
        for each in choice.scored
    ]
    verdicts += [
        control.Verdict(node=node, refused_by=name, reason=said.reason, copy=held.get(node, ""))
        for node, (name, said) in sorted(choice.refused.items())
    ]
    return control.Explanation(
        name=model.name,
        version=model.version,
        state=state_of(view, (model.name, model.version))[0],
        needs_bytes=asked.needs,
        node=choice.nodes[0] if choice.nodes else "",
        why_none="" if choice.nodes else choice.why_none(),
        verdicts=verdicts,
        suspected=history(asked.suspect) if asked.suspect is not None else "",
    )


def cut_message(graph: Graph, plans: Plans, together: Iterable[NodeId]) -> control.PipelineCut:
    """Return where the steps of a pipeline run now, and why, as mesh.v1 shows it."""
    best = plans.best(graph)
    places, held = best[0].places, plans.holders(graph)
    pipeline = graph.pipeline
    return control.PipelineCut(
        name=pipeline.name,
        revision=pipeline.revision,
        together=sorted(together),
        steps=[
            control.StepPlace(
                step=step.name, model=step.model, node=places[step.name], why=_why(graph, step, places, held[step.name])
            )
            for step in (graph.steps[name] for name in graph.order)
        ],
        journeys=[
            control.Journey(tensor=str(edge.ref), origin=edge.origin, to=edge.to, bytes=plans.guessed(graph, edge.ref))
            for edge in edges(graph, places)
        ],
        alternatives=len(best) - 1,
    )


def _why(graph: Graph, step: Step, places: Places, held: Collection[str]) -> str:
    if not held:
        return f"no one node can run it as asked: the router asks for '{step.model}', loading it if need be"
    if len(held) == 1:
        return f"the only node that holds '{step.model}'"
    place = places[step.name]
    near = sorted({ref.step for ref in step.refs() if ref.step and places[ref.step] == place})
    behind = sorted(name for name in graph.waiting_for[step.name] if places[name] == place)
    if near:
        return f"beside {', '.join(near)}, of {len(held)} nodes that hold '{step.model}'"
    if behind:
        return f"beside {', '.join(behind)}, of {len(held)} nodes that hold '{step.model}'"
    return f"the least to do of {len(held)} nodes that hold '{step.model}'"
