"""What another history of the registry lacks: what stays in the view, and until when."""

from __future__ import annotations

from mesh.core.fold import Change, CopyChange, ModelChange, NodeChange, PipelineChange, PlacementChange, SuspectChange
from mesh.core.lost import Lost
from mesh.core.suspects import Suspect
from mesh.core.types import ModelName, ModelVersion, NodeId, Placement, Version

KEY = (ModelName("m"), Version("1"))
MODEL = ModelVersion(*KEY, "onnx", "file:///m/1", "d", 1)
LASTING: list[Change] = [
    ModelChange(KEY, None),
    PlacementChange(KEY, None),
    PipelineChange("p", None),
    SuspectChange(KEY, None),
]
LEASED: list[Change] = [NodeChange(NodeId("a"), None), CopyChange(NodeId("a"), KEY, None)]


def test_a_list_of_the_same_history_is_believed() -> None:
    lost = Lost()
    assert lost.listed([*LEASED, *LASTING], anew=False) == [*LEASED, *LASTING]
    assert not lost


def test_of_another_history_only_what_a_lease_keeps_is_believed_gone() -> None:
    lost = Lost()
    assert lost.listed([*LEASED, *LASTING], anew=True) == LEASED
    assert lost.held == LASTING
    assert repr(lost) == "<Lost 4>"


def test_what_is_held_back_stays_so_in_later_lists_until_it_is_there_again() -> None:
    lost = Lost()
    lost.listed(LASTING, anew=True)
    assert lost.listed(LASTING, anew=False) == []
    lost.changed([ModelChange(KEY, MODEL), PlacementChange(KEY, Placement(*KEY)), SuspectChange(KEY, Suspect(*KEY))])
    assert lost.held == [PipelineChange("p", None)]
    # There again and gone since: that was said of this history.
    assert lost.listed([ModelChange(KEY, None)], anew=False) == [ModelChange(KEY, None)]


def test_a_deletion_meanwhile_counts() -> None:
    lost = Lost()
    lost.listed(LASTING, anew=True)
    lost.changed(LASTING)
    lost.changed(LEASED)
    assert not lost
