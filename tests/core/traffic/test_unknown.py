"""What is said about names that no model has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest

from mesh.core.errors import UnknownModel
from mesh.core.fold import Change, ModelChange, NodeChange, fold
from mesh.core.traffic.route import resolve
from mesh.core.traffic.unknown import LOOKED_AT, hint, refusals
from mesh.core.types import ModelName, ModelVersion, Node, NodeId, Version
from mesh.core.view import ClusterView


def view(*models: str, refused: dict[str, dict[str, str]] | None = None) -> ClusterView:
    changes: list[Change] = [
        ModelChange((ModelName(name), Version("1")), ModelVersion(ModelName(name), Version("1"), "onnx", "", "", 0))
        for name in models
    ]
    changes += [
        NodeChange(NodeId(id_), Node(NodeId(id_), "", "", refused=told)) for id_, told in (refused or {}).items()
    ]
    return fold(ClusterView(), changes, 1)


def text(view: ClusterView, name: str, version: str = "") -> str:
    with pytest.raises(UnknownModel) as caught:
        resolve(view, name, version)
    return caught.value.message.removeprefix("Request for unknown model: ")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("irys", "'irys' is not found; did you mean 'iris'?"),
        ("IRIS", "'IRIS' is not found; did you mean 'iris'?"),
        ("wine", "'wine' is not found"),
        ("", "'' is not found"),
        ("bad", "'bad' is not found: its folder cannot be served: no dates (node a, b); no yaml (node c)"),
        ("bda", "'bda' is not found"),
        ("brokn", "'brokn' is not found; did you mean 'broken'?"),
        ("broken", "'broken' is not found: its folder cannot be served: empty (node a)"),
    ],
)
def test_an_unknown_name(name: str, expected: str) -> None:
    refused = {"a": {"bad": "no dates", "broken/2": "empty"}, "b": {"bad": "no dates"}, "c": {"bad": "no yaml"}}
    assert text(view("iris", "digits", refused=refused), name) == expected


def test_an_unknown_version() -> None:
    known = view("iris", refused={"a": {"iris/2": "empty"}})
    assert text(known, "iris", "2") == ("'iris' version 2 is not found: its folder cannot be served: empty (node a)")
    assert text(known, "iris", "3") == "'iris' version 3 is not found"


def test_the_refusals_of_one_model() -> None:
    known = view(refused={"b": {"x": "one", "y": "two", "/models": "away"}, "a": {"x": "one", "xx": "three"}})
    assert refusals(known, "x") == {"x": "one (node a, b)"}
    assert refusals(known) == {
        "x": "one (node a, b)",
        "xx": "three (node a)",
        "y": "two (node b)",
        "/models": "away (node b)",
    }


def test_a_large_mesh_is_not_searched_as_a_whole() -> None:
    many = view(*(f"model-{n}" for n in range(LOOKED_AT * 2)))
    assert "did you mean 'model-" in text(many, "model-1x")
    looked_at: list[str] = []

    class Names(dict[ModelName, Mapping[Version, ModelVersion]]):
        def __iter__(self) -> Iterator[ModelName]:
            for name in super().__iter__():
                looked_at.append(name)
                yield name

    assert hint(replace(many, models=Names(many.models)), "another") == ""
    assert len(looked_at) == LOOKED_AT
