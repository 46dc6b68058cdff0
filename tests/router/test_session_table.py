"""What a router keeps of all its sessions together, and which it forgets."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from mesh.core.traffic.balance import Balancer
from mesh.core.types import ModelName, ModelVersion, NodeId, Sequencing, Version
from mesh.core.view import ClusterView
from mesh.router.channels import Channels
from mesh.router.live import Keeping, Live
from mesh.router.session_table import SessionTable
from mesh.router.spill import Spill
from mesh.router.target import Target

MODEL = ModelVersion(ModelName("m"), Version("1"), "onnx", "", "", 0, sequence=Sequencing(idle_s=0.0))
MOST = 16 * 1024 * 1024


def session(table: SessionTable, id_: int, state: bytes) -> Live:
    """Open a session that keeps a state."""
    live = table.used(("m", "1", id_), Target(MODEL, ()), asyncio.get_running_loop().time())
    owner = object()
    entry = live.core.asked(cast("Any", object()), b"step", owner, start=True, end=False)
    live.core.placed((NodeId("n"), "1"))
    send = live.core.send_now(entry)
    assert send is not None
    assert live.core.answered(send, state, failed=False)
    table.counted(live)
    return live


def nowhere(address: str) -> Any:
    raise AssertionError(f"there is no node, {address} neither")


@pytest.fixture
async def table() -> Any:
    """A table of a router that sees no node which could keep anything for it."""
    made = SessionTable(MOST, Spill(ClusterView, Channels(nowhere), Balancer(), max_bytes=MOST))
    yield made
    made.close()


async def test_the_sessions_unused_longest_lose_their_protection_when_all_keep_too_much(table: SessionTable) -> None:
    state = bytes(MOST // 32)
    sessions = [session(table, at, state) for at in range(40)]
    kept = [live.core.snapshot is not None for live in sessions]
    assert not kept[0]
    assert kept[-1]
    assert kept == sorted(kept)
    assert table.kept_bytes == sum(live.core.kept_bytes for live in sessions) <= MOST


async def test_one_session_may_not_take_the_room_of_all(table: SessionTable) -> None:
    assert session(table, 1, bytes(MOST // 4)).core.snapshot is not None
    assert session(table, 2, bytes(MOST * 5 // 8)).core.snapshot is None


async def test_what_is_forgotten_is_not_counted(table: SessionTable) -> None:
    live = session(table, 1, b"state")
    assert table.begun("m", 1) is live
    table.forget(live)
    table.forget(live)
    assert table.kept_bytes == 0
    assert table.begun("m", 1) is table.get(("m", "1", 1)) is None
    (group,) = table.messages()
    assert (group.live, group.steps) == (0, 1)


async def test_what_is_forgotten_while_its_snapshot_travels_is_not_counted_again(table: SessionTable) -> None:
    live = session(table, 1, b"state")
    snapshot = live.core.snapshot
    assert snapshot is not None
    table.forget(live)
    for kept in (None, Keeping((NodeId("n"), "1"), 1)):
        table.spilled(live, snapshot, kept)
        assert live.kept is None
        assert table.kept_bytes == 0


async def test_sessions_are_moved_when_their_versions_are_served_otherwise(table: SessionTable) -> None:
    live = session(table, 1, b"state")
    view = ClusterView(serving={(MODEL.name, MODEL.version): (cast("Any", object()),)})
    assert table.moved(view) == [live]
    assert table.moved(view) == []
