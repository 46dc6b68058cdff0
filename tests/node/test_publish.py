"""The registry's model records follow the folders, and outlive trouble with reading them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from mesh.core.reconcile import Desired, reconcile
from mesh.core.types import Copy, CopyState, ModelName, Scaling, Version
from mesh.node.publish import Publisher
from mesh.node.repository import Scanner
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.mirror import Mirror


def write(root: Path, version: str = "1", name: str = "m") -> Path:
    folder = root / name / version
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"content")
    return folder


@asynccontextmanager
async def publishing(store: EtcdClient, *roots: Path) -> AsyncIterator[tuple[Publisher, Mirror]]:
    mirror = Mirror(store)
    following = asyncio.create_task(mirror.run())
    try:
        await asyncio.wait_for(mirror.wait_synced(), 60)
        yield Publisher(Scanner(roots), store, mirror), mirror
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def holds(mirror: Mirror, *versions: str) -> None:
    """Wait until the view shows exactly these versions of "m"."""
    name = ModelName("m")
    await asyncio.wait_for(mirror.wait_for(lambda view: set(view.models.get(name, {})) == set(versions)), 60)


async def test_a_version_is_published_once_and_removed_with_its_folder(store: EtcdClient, tmp_path: Path) -> None:
    folder = write(tmp_path)
    async with publishing(store, tmp_path) as (publisher, mirror):
        assert (await publisher.scan()).added == ["m/1"]
        await holds(mirror, "1")
        again = await publisher.scan()
        assert (again.added, again.changed, again.removed) == ([], [], [])
        shutil.rmtree(folder.parent)
        assert (await publisher.scan()).removed == ["m/1"]
        await holds(mirror)


async def test_a_version_that_is_being_copied_in_leaves_the_others_published(store: EtcdClient, tmp_path: Path) -> None:
    write(tmp_path)
    async with publishing(store, tmp_path) as (publisher, mirror):
        await publisher.scan()
        await holds(mirror, "1")
        (tmp_path / "m" / "2").mkdir()
        done = await publisher.scan()
        assert done.removed == []
        assert done.refused == {str((tmp_path / "m" / "2").resolve()): "version 2 has none of model.onnx, model.py"}
        (tmp_path / "m" / "2" / "model.onnx").write_bytes(b"copied")
        assert (await publisher.scan()).added == ["m/2"]
        await holds(mirror, "1", "2")


async def test_a_mistake_in_model_yaml_leaves_the_version_published(store: EtcdClient, tmp_path: Path) -> None:
    write(tmp_path)
    async with publishing(store, tmp_path) as (publisher, mirror):
        await publisher.scan()
        await holds(mirror, "1")
        (tmp_path / "m" / "model.yaml").write_text("max_batchsize: 4")
        done = await publisher.scan()
        assert (done.changed, done.removed) == ([], [])
        assert list(done.refused) == [str((tmp_path / "m").resolve())]
        (tmp_path / "m" / "model.yaml").write_text("max_batch_size: 4")
        assert (await publisher.scan()).changed == ["m/1"]


async def test_another_scaling_changes_the_record_and_loads_nothing_again(store: EtcdClient, tmp_path: Path) -> None:
    write(tmp_path)
    key = (ModelName("m"), Version("1"))
    async with publishing(store, tmp_path) as (publisher, mirror):
        await publisher.scan()
        await holds(mirror, "1")
        before = mirror.view.models[key[0]][key[1]]
        learned = replace(before, loaded_bytes=77, load_s=1.5)
        await publisher.describe(learned, (), ())
        (tmp_path / "m" / "model.yaml").write_text("scaling: {min_copies: 2}")
        assert (await publisher.scan()).changed == ["m/1"]
        scaling = Scaling(min_copies=2)
        await asyncio.wait_for(mirror.wait_for(lambda view: view.models[key[0]][key[1]].scaling == scaling), 60)
        after = mirror.view.models[key[0]][key[1]]
        assert after == replace(learned, scaling=scaling), "what its load found out stays"
        held = {key: Copy(*key, CopyState.READY, digest=before.digest)}
        assert reconcile({key: Desired(after, 0.0)}, held) == []
        assert (await publisher.scan()).changed == []


async def test_a_repository_that_cannot_be_read_leaves_its_versions_published(
    store: EtcdClient, tmp_path: Path
) -> None:
    away, kept = tmp_path / "away", tmp_path / "kept"
    write(away)
    write(kept, name="other")
    async with publishing(store, away, kept) as (publisher, mirror):
        await publisher.scan()
        await holds(mirror, "1")
        away.rename(tmp_path / "elsewhere")
        shutil.rmtree(kept / "other")
        done = await publisher.scan()
        assert done.removed == ["other/1"]
        assert "cannot be read" in done.refused[str(away.resolve())]
        await holds(mirror, "1")


async def test_two_nodes_that_read_one_repository_publish_once(store: EtcdClient, tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "2")
    async with publishing(store, tmp_path) as (one, mirror), publishing(store, tmp_path) as (two, _):
        both = await asyncio.gather(one.scan(), two.scan())
        assert sorted([*both[0].added, *both[1].added]) == ["m/1", "m/2"]
        assert [done.changed + done.removed for done in both] == [[], []]
        await holds(mirror, "1", "2")
