"""How many models a mesh can know: a registry full of them, the router that reads it, and the plans made over it.

``python -m benchmarks.scale``: 100,000 models in an etcd, 10,000 copies of them on 100 nodes. Prints how long a router
takes from its start until it serves, its memory, what a change costs it; and, over 1,000 nodes in this process, how
long one plan for a cold request takes and a pass over everything right after a tenth of the nodes was lost. ``--json``
prints one line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import cpu_s, memory_bytes
from benchmarks.processes import etcd, mesh, ready_line
from mesh.core.fold import Change, CopyChange, ModelChange, NodeChange, PlacementChange, fold
from mesh.core.placement.cold import Place, cold_step
from mesh.core.placement.demand import Demand
from mesh.core.placement.duties import Pass
from mesh.core.types import (
    Copy,
    CopyState,
    Device,
    DeviceKind,
    Dtype,
    ModelName,
    ModelVersion,
    Node,
    NodeId,
    Placement,
    TensorSpec,
    Version,
)
from mesh.core.view import ClusterView
from mesh.registry import records
from mesh.registry.config import RegistryConfig
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import copy_key, model_key, node_key, placement_key
from mesh.registry.store import batches

MIB = 1024 * 1024
V = Version("1")
NOW_S = 1.7e9
CHANGES = 2000


def main() -> int:
    """Run; return the exit code."""
    given = _parser().parse_args()
    if shutil.which("etcd") is None:
        print("scale: expected etcd on the PATH; install it (apt-get install etcd-server)", file=sys.stderr)
        return 2
    found: dict[str, Any] = {"models": given.models, "nodes": given.nodes, "copies": given.copies}
    with tempfile.TemporaryDirectory() as folder, etcd(Path(folder) / "etcd") as registry:
        found["fill_s"] = round(asyncio.run(_fill(registry, given)), 1)
        found |= _router(registry, given)
    found |= _plans(given)
    print(json.dumps(found) if given.json else _told(found))
    return 0


def model(number: int) -> ModelVersion:
    """Return the record of a small ONNX model, as the scan of a repository and its first load leave it."""
    name = f"team-{number % 97}-model-{number:06}"
    return ModelVersion(
        ModelName(name),
        V,
        "onnx",
        f"file:///srv/models/{name}/1",
        f"{number:064x}",
        123_456,
        platform="onnxruntime_onnx",
        inputs=(TensorSpec("x", Dtype.FP32, (-1, 64)),),
        outputs=(TensorSpec("label", Dtype.INT64, (-1,)), TensorSpec("probabilities", Dtype.FP32, (-1, 10))),
        max_batch_size=64,
        files_digest=f"{number:064x}",
        loaded_bytes=4 * MIB,
        load_s=0.02,
    )


def node(number: int, *, free_bytes: int = 0) -> Node:
    """Return a node that is full but for `free_bytes`."""
    curve = tuple((4 * MIB << step, 0.01 * 4**step) for step in range(5))
    device = Device(DeviceKind.CPU, 0, "cpu", 4000 * MIB, free_bytes, curve)
    id_ = NodeId(f"node-{number:04}")
    return Node(id_, f"10.0.{number // 250}.{number % 250}:8001", f"{number:016x}", NOW_S, devices=(device,), **_ROOTS)


_ROOTS: dict[str, Any] = {"repositories": ("file:///srv/models",)}


def copy(of: ModelVersion) -> Copy:
    """Return a loaded copy."""
    return Copy(of.name, of.version, CopyState.READY, of.loaded_bytes, NOW_S, changed_s=NOW_S, digest=of.digest)


def cluster(models: int, nodes: int, copies: int) -> Iterator[Change]:
    """Yield what a registry holds: `nodes`, `models`, and the first `copies` of them placed and loaded."""
    for number in range(nodes):
        yield NodeChange(node(number).id, node(number))
    for number in range(models):
        each = model(number)
        key = (each.name, each.version)
        yield ModelChange(key, each)
        if number < copies:
            on = node(number % nodes).id
            yield PlacementChange(key, Placement(*key, (on,), requested_s=NOW_S, heat=50.0, last_s=NOW_S))
            yield CopyChange(on, key, copy(each))


async def _fill(registry: str, given: argparse.Namespace) -> float:
    began_s = time.monotonic()
    store = EtcdClient(RegistryConfig(endpoints=(registry,), timeout_s=30.0))
    for batch in batches(dict(_entry(change) for change in cluster(given.models, given.nodes, given.copies))):
        await store.write(batch)
    await store.close()
    return time.monotonic() - began_s


def _entry(change: Change) -> tuple[str, bytes]:
    match change:
        case NodeChange(id_, record) if record is not None:
            return node_key(id_), records.encode(record)
        case CopyChange(id_, key, record) if record is not None:
            return copy_key(id_, key), records.encode(record)
        case ModelChange(key, record) if record is not None:
            return model_key(*key), records.encode(record)
        case PlacementChange(key, record) if record is not None:
            return placement_key(*key), records.encode(record)
    raise AssertionError(change)


def _router(registry: str, given: argparse.Namespace) -> dict[str, Any]:
    """Start a router; return its time to serve, its memory and its CPU for a change of one copy."""
    words = ("router", "--grpc-port", "0", "--no-http", "--trace-sample", "0", "--json-ready", "--registry")
    with (
        tempfile.TemporaryDirectory() as folder,
        etcd(Path(folder) / "etcd") as nothing,
        mesh(*words, nothing) as idle,
    ):
        ready_line(idle)
        base = memory_bytes(idle.pid, "VmRSS")
    began_s = time.monotonic()
    with mesh(*words, registry) as router:
        ready_line(router)
        started_s = time.monotonic() - began_s
        resident, peak = memory_bytes(router.pid, "VmRSS"), memory_bytes(router.pid, "VmHWM")
        used_s, began_s = cpu_s(router.pid), time.monotonic()
        asyncio.run(_change(registry, given))
        time.sleep(1.0)
        # What it would have done anyway in this time is measured after.
        busy_s, busy_wall_s = cpu_s(router.pid) - used_s, time.monotonic() - began_s
        used_s = cpu_s(router.pid)
        time.sleep(3.0)
        idle_share = (cpu_s(router.pid) - used_s) / 3.0
    return {
        "start_s": round(started_s, 2),
        "router_mb": round(resident / 1e6),
        "router_peak_mb": round(peak / 1e6),
        "router_empty_mb": round(base / 1e6),
        "change_us": round((busy_s - idle_share * busy_wall_s) / CHANGES * 1e6),
        "idle_cpu": round(idle_share, 3),
    }


async def _change(registry: str, given: argparse.Namespace) -> None:
    store = EtcdClient(RegistryConfig(endpoints=(registry,)))
    for number in range(CHANGES):
        each = model(number % given.copies)
        record = Copy(each.name, each.version, CopyState.READY, each.loaded_bytes, NOW_S + number)
        on = node(number % given.copies % given.nodes).id
        await store.put(copy_key(on, (each.name, each.version)), records.encode(record))
    await store.close()


def _plans(given: argparse.Namespace) -> dict[str, Any]:
    """Return the times of plans over `--plan-nodes` full nodes, every model placed and loaded once."""
    began_s = time.monotonic()
    view = fold(ClusterView(), cluster(given.models, given.plan_nodes, given.models), 1)
    folded_s = time.monotonic() - began_s
    cold_us = []
    for number in range(200):
        unknown = model(given.models + number)
        began_s = time.perf_counter()
        step = cold_step(view, unknown, None, avoid=(), now_s=NOW_S, since_s=NOW_S)
        cold_us.append((time.perf_counter() - began_s) * 1e6)
        assert isinstance(step, Place), step
    demand = Demand()
    for key, placement in view.placements.items():
        demand.remembered(key, placement.heat, placement.last_s)
    lost = [id_ for number, id_ in enumerate(sorted(view.nodes)) if number % 10 == 0]
    gone: list[Change] = [NodeChange(id_, None) for id_ in lost]
    gone += [CopyChange(id_, key, None) for id_ in lost for key in view.held[id_]]
    began_s = time.perf_counter()
    after = fold(view, gone, 2)
    lose_s = time.perf_counter() - began_s
    passes, written = [], 0
    for _ in range(3):
        began_s = time.perf_counter()
        duties = Pass(after, demand, now_s=NOW_S, begun_s=NOW_S - 60).duties(fill=True)
        passes.append(time.perf_counter() - began_s)
        written = len(duties)
    return {
        "plan_nodes": given.plan_nodes,
        "fold_s": round(folded_s, 2),
        "plan_us": round(median(cold_us), 1),
        "lose_nodes_s": round(lose_s, 3),
        "rebalance_s": round(median(passes), 3),
        "rebalance_writes": written,
    }


def _told(found: dict[str, Any]) -> str:
    etcd_has = f"{found['models']:,} models, {found['copies']:,} copies on {found['nodes']} nodes"
    memory = f"{found['router_mb']} MB, at most {found['router_peak_mb']} ({found['router_empty_mb']} without models)"
    change = f"a change of one copy costs it {found['change_us']} µs of CPU"
    loss = f"the loss of a tenth of the nodes is taken in within {found['lose_nodes_s']} s"
    return "\n".join(
        [
            f"{etcd_has} in etcd (filled in {found['fill_s']} s)",
            f"a router serves {found['start_s']} s after its start; memory {memory}",
            f"{change}; idle, it uses {found['idle_cpu']:.1%} of a core",
            f"over {found['plan_nodes']:,} nodes: a plan for a cold request takes {found['plan_us']} µs; {loss},",
            f"a pass over everything then takes {found['rebalance_s']} s ({found['rebalance_writes']} writes)",
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scale", description=__doc__)
    parser.add_argument("--models", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=100, help="nodes in etcd")
    parser.add_argument("--copies", type=int, default=10_000, help="models that are loaded, in etcd")
    parser.add_argument("--plan-nodes", type=int, default=1000, help="nodes that plans are made over")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
