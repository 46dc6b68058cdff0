"""Planners in different processes, whose hashes differ, decide alike on the same snapshot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

PLAN = """
from benchmarks.scale import NOW_S, cluster, model, node
from mesh.core.fold import ModelChange, NodeChange, CopyChange, fold
from mesh.core.placement.cold import cold_step
from mesh.core.placement.demand import Demand
from mesh.core.placement.duties import Pass
from mesh.core.view import ClusterView

view = fold(ClusterView(), cluster(900, 90, 600), 1)
demand = Demand()
for key, placement in view.placements.items():
    demand.remembered(key, placement.heat, placement.last_s)
lost = [node(number).id for number in range(0, 90, 5)]
gone = [NodeChange(id_, None) for id_ in lost]
gone += [CopyChange(id_, key, None) for id_ in lost for key in view.held[id_]]
view = fold(view, gone, 2)
for duty in Pass(view, demand, now_s=NOW_S, begun_s=NOW_S - 60).duties(fill=True):
    print(duty)
for number in range(600, 640):
    print(cold_step(view, model(number), None, avoid=(), now_s=NOW_S, since_s=NOW_S))
"""


def planned(seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PLAN],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_plan_alike() -> None:
    one, other = planned("1"), planned("2")
    assert one.count("Duty(") == 72 // 4, "as many loads at once as a quarter of the nodes that are left"
    assert one.count("Place(") == 40
    assert one == other
