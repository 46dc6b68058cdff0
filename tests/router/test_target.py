"""What the hot path keeps from one view of the mesh to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from mesh.core.errors import UnknownModel
from mesh.core.types import Copy, CopyState, ModelName, ModelVersion, NodeId, Version
from mesh.core.view import ClusterView, Host, Located
from mesh.registry.mirror import Mirror
from mesh.router.target import Targets

M, N = (ModelVersion(ModelName(name), Version("1"), "onnx", "", "", 0) for name in "mn")


def located(model: ModelVersion, node: str) -> tuple[Located, ...]:
    host = Host(NodeId(node), "127.0.0.1:1", "1")
    return (Located(host, Copy(model.name, model.version, CopyState.READY)),)


def test_a_target_stays_the_same_object_until_its_model_or_its_copies_change() -> None:
    mirror = Mirror(cast("Any", None))
    models = {each.name: {each.version: each} for each in (M, N)}
    mirror.view = ClusterView(models=models, serving={(M.name, M.version): located(M, "a")})
    targets = Targets(mirror)
    first, other = targets.find("m", ""), targets.find("n", "1")
    assert targets.find("m", "") is first
    mirror.view = replace(
        mirror.view, revision=1, serving={**mirror.view.serving, (N.name, N.version): located(N, "b")}
    )
    assert targets.find("m", "") is first
    assert targets.find("n", "1") is not other
    assert [each.node.id for each in targets.find("n", "1").candidates] == ["b"]
    mirror.view = replace(mirror.view, models={M.name: {M.version: replace(M, digest="new")}})
    assert targets.find("m", "").model.digest == "new"
    with pytest.raises(UnknownModel):
        targets.find("n", "1")
