from __future__ import annotations

import pytest

from mesh.core.errors import InvalidRequest, UnknownModel
from mesh.core.fold import Change, ModelChange, PlacementChange, fold
from mesh.core.traffic.route import resolve
from mesh.core.types import ModelName, ModelVersion, Placement, Version
from mesh.core.view import ClusterView


def view_of(*versions: str, off: tuple[str, ...] = ()) -> ClusterView:
    name = ModelName("m")
    changes: list[Change] = [
        ModelChange((name, Version(each)), ModelVersion(name, Version(each), "onnx", "s", "d", 1)) for each in versions
    ]
    changes += [PlacementChange((name, Version(each)), Placement(name, Version(each), off=True)) for each in off]
    return fold(ClusterView(), changes, 1)


def test_no_version_means_the_latest_by_number() -> None:
    assert resolve(view_of("9", "10", "2"), "m", "").version == "10"


def test_an_unloaded_latest_version_gives_way_to_the_one_before() -> None:
    assert resolve(view_of("1", "2", off=("2",)), "m", "").version == "1"


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(UnknownModel, match="Request for unknown model: 'x' is not found"):
        resolve(view_of("1"), "x", "")


def test_an_unknown_version_is_not_found() -> None:
    with pytest.raises(UnknownModel, match="version 99 is not found"):
        resolve(view_of("1"), "m", "99")


def test_a_version_that_is_no_number_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidRequest, match="failed to get model version from specified version string 'v'"):
        resolve(view_of("1"), "m", "v")


@pytest.mark.parametrize("version", ["", "1"])
def test_unloaded_versions_are_not_available(version: str) -> None:
    with pytest.raises(UnknownModel, match="has no available versions"):
        resolve(view_of("1", off=("1",)), "m", version)
