"""Which versions a loader looks at."""

from __future__ import annotations

import asyncio

import pytest

from mesh.core.fold import CopyChange, ModelChange, NodeChange, PlacementChange, SuspectChange
from mesh.core.types import ModelName, NodeId, Version
from mesh.core.view import VersionKey
from mesh.node import look
from mesh.node.look import Look

MINE: VersionKey = (ModelName("mine"), Version("1"))
OTHER: VersionKey = (ModelName("other"), Version("1"))


async def begun() -> Look:
    """Return one that has looked at all once, as after the start."""
    one = Look(lambda key: key == MINE)
    assert await one.next() is None
    return one


async def test_all_is_looked_at_in_the_beginning_and_when_the_registry_was_read_anew() -> None:
    one = await begun()
    one.at(MINE)
    one.changed(None)
    assert await one.next() is None


@pytest.mark.parametrize("kind", [ModelChange, PlacementChange, SuspectChange])
async def test_only_what_concerns_the_node_is_looked_at(kind: type[ModelChange]) -> None:
    one = await begun()
    one.changed(
        [kind(MINE, None), kind(OTHER, None), NodeChange(NodeId("a"), None), CopyChange(NodeId("a"), MINE, None)]
    )
    assert await one.next() == {MINE}


async def test_what_does_not_concern_the_node_does_not_wake_it() -> None:
    one = await begun()
    looking = asyncio.create_task(one.next())
    one.changed([PlacementChange(OTHER, None), CopyChange(NodeId("a"), MINE, None)])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not looking.done()
    one.at(OTHER)
    assert await looking == {OTHER}


async def test_now_and_then_all_is_looked_at_whatever_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    one = await begun()
    monkeypatch.setattr(look, "ALL_S", 0.01)
    assert await one.next() is None


async def test_what_comes_while_nobody_waits_is_kept() -> None:
    one = await begun()
    one.at(MINE)
    one.at(OTHER)
    assert await one.next() == {MINE, OTHER}
