"""Calls that wait for a cold model: whatever happens meanwhile, each is answered or refused within its deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.core.errors import MeshError
from mesh.core.types import Copy, CopyState, Device, DeviceKind, ModelName, ModelVersion, Node, NodeId, Version
from mesh.registry import records
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import copy_key, model_key, node_key
from mesh.registry.mirror import Mirror
from mesh.router.cold import Cold, patience_s

MIB = 1024 * 1024
MODEL = ModelVersion(ModelName("m"), Version("1"), "onnx", "file:///r/m/1", "d", size_bytes=MIB)
KEY = (MODEL.name, MODEL.version)

Event = tuple[str, str, float]
"""What happens to which node, and seconds after the event before."""

_runs = count()

events = st.lists(
    st.tuples(
        st.sampled_from(["join", "small", "leave", "ready", "loading", "failed", "draining", "gone"]),
        st.sampled_from("ab"),
        st.sampled_from([0.0, 0.01, 0.05]),
    ),
    max_size=12,
)
patience = st.lists(st.sampled_from([0.0, 0.05, 0.2, 0.4]), min_size=1, max_size=6)


async def happen(store: EtcdClient, prefix: str, model: ModelVersion, steps: Sequence[Event]) -> None:
    key = (model.name, model.version)
    for what, name, after_s in steps:
        await asyncio.sleep(after_s)
        id_ = NodeId(prefix + name)
        if what in {"join", "small", "leave"}:
            room = (1 if what == "small" else 100) * MIB
            device = Device(DeviceKind.CPU, 0, "", room, room)
            node = Node(id_, f"{id_}:1", "i", devices=(device,), repositories=("file:///r",), leaving=what == "leave")
            await store.put(node_key(id_), records.encode(node))
        elif what == "gone":
            await store.write({node_key(id_): None, copy_key(id_, key): None})
        else:
            error = "boom" if what == "failed" else ""
            copy = Copy(*key, CopyState(what), error=error, digest=model.digest, requested_s=time.time())
            await store.put(copy_key(id_, key), records.encode(copy))


async def ended_in_time(cold: Cold, model: ModelVersion, spare_s: float) -> str:
    """Call with `spare_s` to the deadline; fail if the call still waits when a later timer of the same loop is due."""
    call = asyncio.create_task(cold.wait(model, time.monotonic() + spare_s))
    await asyncio.sleep(spare_s + 0.1)
    # Both timers may be late on a busy machine, and then run in their order: only the loop's turns count.
    for _ in range(20):
        await asyncio.sleep(0)
    assert call.done(), f"a call with {spare_s} s to its deadline waits still: {cold!r}"
    try:
        await call
    except MeshError as error:
        return type(error).__name__
    return "served"


@pytest.mark.timeout(300)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=events, spare_s=patience, load_s=st.sampled_from([0.0, 0.1, 5.0]), waiting=st.sampled_from([2, 100]))
async def test_every_call_is_answered_or_refused_within_its_deadline(
    store: EtcdClient, steps: list[Event], spare_s: list[float], load_s: float, waiting: int
) -> None:
    prefix = f"run{next(_runs)}-"
    model = replace(MODEL, name=ModelName(prefix + "m"), load_s=load_s)
    await store.put(model_key(model.name, model.version), records.encode(model))
    mirror = Mirror(store)
    following = asyncio.create_task(mirror.run())
    await mirror.wait_synced()
    cold = Cold(mirror, store, avoided=lambda _: (), max_waiting=waiting)
    happening = asyncio.create_task(happen(store, prefix, model, steps))
    try:
        ends = await asyncio.gather(*(ended_in_time(cold, model, each) for each in spare_s))
        assert set(ends) <= {"served", "DeadlineExceeded", "Loading", "Overloaded", "NoCapacity", "LoadFailed", "Churn"}
        if load_s > 1 and not any(what == "ready" for what, _, _ in steps):
            assert "DeadlineExceeded" not in ends, "the load takes longer: that is said at once and not in the end"
    finally:
        await asyncio.gather(happening, return_exceptions=True)
        await cold.close()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        left = [each.key for each in (await store.list("/mesh/v1/")).entries]
        for key in left:
            await store.delete(key)


def test_a_call_gives_up_waiting_early_enough_to_hear_why() -> None:
    assert patience_s(None, 10.0, 60.0) == 70.0
    assert patience_s(500.0, 10.0, 60.0) == 70.0
    assert patience_s(12.0, 10.0, 60.0) == pytest.approx(11.9)
    assert patience_s(11.0, 10.0, 60.0) == pytest.approx(10.95)
    assert patience_s(10.01, 10.0, 60.0) == pytest.approx(10.008)
