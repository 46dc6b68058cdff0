"""The registry of `mesh up`: a real etcd, the embedded store, or one that is given."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from mesh.cli.children import ChildFailed
from mesh.cli.flags import registry_config
from mesh.cli.local_registry import Embedded, GivenRegistry, LocalEtcd, LocalRegistry, choose, free_ports
from mesh.core.errors import RegistryUnavailable
from mesh.registry.etcd_client import EtcdClient

DEADLINE_S = 60.0
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
needs_etcd = pytest.mark.skipif(shutil.which("etcd") is None, reason="needs an etcd binary")


async def put_and_get(registry: LocalRegistry) -> bytes:
    client = EtcdClient(registry_config(registry.url, environment={}))
    try:
        await client.put("/mesh/v1/test", b"value")
        found = await client.get("/mesh/v1/test")
    finally:
        await client.close()
    assert found is not None
    return found.value


def etcd(said: list[str], folder: Path | None = None) -> LocalEtcd:
    binary = shutil.which("etcd")
    assert binary is not None
    return LocalEtcd(binary, folder, said.append)


@needs_etcd
@pytest.mark.needs_etcd
async def test_a_local_etcd_answers_and_leaves_nothing_behind() -> None:
    registry = etcd([])
    try:
        await registry.start()
        assert registry.url.startswith("http://127.0.0.1:")
        assert await put_and_get(registry) == b"value"
        pid, folder = registry.pid, registry._folder
        assert pid
        assert folder is not None
        assert folder.is_dir()
    finally:
        await registry.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not folder.exists()


@needs_etcd
@pytest.mark.needs_etcd
async def test_a_killed_etcd_starts_again_with_its_data(tmp_path: Path) -> None:
    said: list[str] = []
    registry = etcd(said, tmp_path / "data")
    try:
        await registry.start()
        await put_and_get(registry)
        keeping = asyncio.create_task(registry.keep())
        os.kill(registry.pid, signal.SIGKILL)
        end_s = time.monotonic() + DEADLINE_S
        while "etcd runs again" not in said:
            assert time.monotonic() < end_s, said
            await asyncio.sleep(0.05)
        client = EtcdClient(registry_config(registry.url, environment={}))
        found = await client.get("/mesh/v1/test")
        await client.close()
        assert found is not None
        assert found.value == b"value"
        keeping.cancel()
    finally:
        await registry.stop()
    assert (tmp_path / "data").is_dir()


async def test_the_embedded_registry_answers_like_an_etcd() -> None:
    registry = Embedded()
    try:
        await registry.start()
        assert await put_and_get(registry) == b"value"
    finally:
        await registry.stop()


async def test_a_given_registry_that_does_not_answer_is_one_sentence() -> None:
    (port,) = free_ports(1)
    config = registry_config(f"127.0.0.1:{port}", timeout_s=0.5, environment={})
    with pytest.raises(RegistryUnavailable) as caught:
        await GivenRegistry(config, f"127.0.0.1:{port}").start()
    assert f"127.0.0.1:{port}" in caught.value.message


def test_without_an_etcd_binary_the_embedded_store_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(choose(None, "", None, print), Embedded)
    with pytest.raises(ChildFailed, match="--data-dir needs an etcd binary"):
        choose(None, "", tmp_path, print)
    config = registry_config("127.0.0.1:1", environment={})
    assert isinstance(choose(config, "127.0.0.1:1", None, print), GivenRegistry)


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(5))) == 5


@pytest.mark.skipif(not EPHEMERAL.exists(), reason="this kernel does not tell which ports it gives to callers")
def test_free_ports_are_none_that_a_caller_is_given() -> None:
    first = int(EPHEMERAL.read_text().split()[0])
    assert max(free_ports(20)) < first
