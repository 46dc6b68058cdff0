"""From the view and from decisions to mesh.v1's messages: models with their state, and explanations."""

from __future__ import annotations

import time

from mesh.api.describe import copy_message
from mesh.api.messages import control
from mesh.core.placement.explain import Explained
from mesh.core.placement.progress import progress
from mesh.core.placement.scores import SCORES
from mesh.core.types import CopyState, ModelVersion
from mesh.core.view import ClusterView, VersionKey


def state_of(view: ClusterView, key: VersionKey) -> tuple[str, str]:
    """Return "ready", "loading", "cold", "unloaded" or "failed", and why it failed or how far its load is."""
    copies = view.copies.get(key, ())
    states = {each.copy.state for each in copies}
    if view.is_off(key):
        return "unloaded", ""
    if view.serving.get(key):
        return "ready", ""
    if CopyState.LOADING in states:
        return "loading", "; ".join(each.told for each in progress(view, key, time.time()))
    if CopyState.FAILED in states:
        return "failed", "; ".join(sorted({each.copy.error for each in copies if each.copy.error}))
    return "cold", ""


def model_message(view: ClusterView, model: ModelVersion) -> control.Model:
    """Return a version with its state and copies as mesh.v1 shows it."""
    key = (model.name, model.version)
    state, reason = state_of(view, key)
    ahead = {each.node: each.ahead for each in progress(view, key, time.time())}
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
    )
