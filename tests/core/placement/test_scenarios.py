"""Every file in tests/scenarios/placement: nodes, a model, and where it goes or who refuses it and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.core.placement.asked import Asked, zone_of
from mesh.core.placement.choose import Choice, choose
from mesh.core.placement.evict import Idle, curve, in_order
from mesh.core.types import Copy, CopyState, Device, DeviceKind, ModelName, ModelVersion, Node, NodeId, Version

MIB = 1024 * 1024
FOLDER = Path(__file__).parents[2] / "scenarios" / "placement"
FILES = sorted(FOLDER.glob("*.yaml"))


def device(said: dict[str, Any], index: int, unit: int) -> Device:
    idle = [
        Idle((ModelName(f"{at}-{copy:04}"), Version("1")), each["bytes"] * unit, each["loss"])
        for at, each in enumerate(said.get("idle", ()))
        for copy in range(each.get("count", 1))
    ]
    total = said.get("total", 1000) * unit
    kind = DeviceKind(said.get("kind", "cpu"))
    return Device(kind, index, "device", total, said["free"] * unit, curve(in_order(idle)))


def node(name: str, said: dict[str, Any], unit: int) -> Node:
    return Node(
        NodeId(name),
        f"{name}:1",
        "i",
        labels=said.get("labels", {}),
        devices=tuple(device(each, index, unit) for index, each in enumerate(said.get("devices", [said]))),
        draining=said.get("draining", False),
        leaving=said.get("leaving", False),
        loading=said.get("loading", 0),
        failing=said.get("failing", ""),
        repositories=("file:///models",),
    )


def decided(scenario: dict[str, Any]) -> Choice:
    unit = scenario.get("unit", MIB)
    nodes = {name: node(name, said, unit) for name, said in sorted(scenario["nodes"].items())}
    said = scenario["model"]
    model = ModelVersion(
        ModelName("m"),
        Version("1"),
        "onnx",
        "file:///models/m/1",
        "d",
        1,
        loaded_bytes=said["bytes"] * unit,
        node_labels=said.get("labels", {}),
        device=said.get("device", "auto"),
    )
    copies = {
        NodeId(name): Copy(
            model.name,
            model.version,
            CopyState(each["copy"]),
            pause_s=each.get("pause", 0.0),
            error="it broke",
        )
        for name, each in scenario["nodes"].items()
        if "copy" in each
    }
    asked = Asked(
        model,
        float(scenario.get("now", 1000)),
        copies,
        avoid={NodeId(name) for name, each in scenario["nodes"].items() if each.get("unreachable")},
        zones={zone_of(nodes[name]) for name, copy in copies.items() if copy.state is CopyState.READY},
    )
    return choose(asked, list(nodes.values()), 1)


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    scenario = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# "), "a scenario says in words what it is about"
    expect = scenario["expect"]
    choice = decided(scenario)
    assert choice == decided(scenario), "the same picture gives the same decision"
    if "node" in expect:
        assert choice.nodes == (expect["node"],), choice.why_none()
    else:
        assert choice.nodes == ()
        assert {name for name, _ in choice.refused.values()} == {expect["refused"]}
        assert choice.soon is expect.get("waits", False)
    if "evicts" in expect:
        assert choice.scored[0].room.evicts_bytes == expect["evicts"] * scenario.get("unit", MIB)
    for name, filter_ in expect.get("refused_by", {}).items():
        assert choice.refused[NodeId(name)][0] == filter_
