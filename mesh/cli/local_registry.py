"""The registry of `mesh up`: one that is given, a local etcd, or the embedded store inside this process."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from mesh.cli.children import Child, ChildFailed, Ready, Say
from mesh.registry.config import RegistryConfig

ETCD_TRIES: Final = 3
"""Its ports are free when chosen; another process may take one before etcd does."""
PORT_TRIES: Final = 1000
STOP_S: Final = 10.0
"""How long etcd may take to close its files."""


class LocalRegistry(Protocol):
    """A registry as `mesh up` sees it."""

    url: str
    """What processes get as --registry and a person sees."""

    async def start(self) -> None:
        """Make it answer. Raises `ChildFailed` or OSError."""

    async def keep(self) -> None:
        """Watch over it for as long as it is not cancelled."""

    async def stop(self) -> None:
        """End it if it is ours. Idempotent."""


def choose(given: RegistryConfig | None, url: str, data_dir: Path | None, say: Say) -> LocalRegistry:
    """Return the registry to use: `given` if there is one, else a local etcd binary, else the embedded store."""
    if given is not None:
        return GivenRegistry(given, url)
    binary = shutil.which("etcd")
    if binary is not None:
        return LocalEtcd(binary, data_dir, say)
    if data_dir is not None:
        raise ChildFailed("--data-dir needs an etcd binary on the PATH: the embedded registry keeps nothing on disk")
    return Embedded()


class GivenRegistry:
    """Somebody else's registry: only waited for."""

    def __init__(self, config: RegistryConfig, url: str) -> None:
        self.url = url
        self._config = config

    async def start(self) -> None:
        """Wait for its first answer, at most the configured timeout. Raises `RegistryUnavailable`."""
        from mesh.registry.etcd_client import EtcdClient  # noqa: PLC0415 - grpc is slow to import

        client = EtcdClient(self._config)
        try:
            await client.get("/mesh/v1/")
        finally:
            await client.close()

    async def keep(self) -> None:
        """Do nothing: it is not ours."""

    async def stop(self) -> None:
        """Do nothing: it is not ours."""


class Embedded:
    """The embedded store, in this process and in memory."""

    def __init__(self) -> None:
        from mesh.registry.embedded import EmbeddedRegistry  # noqa: PLC0415 - grpc is slow to import

        self.url = ""
        self._registry = EmbeddedRegistry("127.0.0.1", 0)

    async def start(self) -> None:
        """Listen on a free port of the loopback address."""
        await self._registry.start()
        self.url = f"http://{self._registry.address}"

    async def keep(self) -> None:
        """Do nothing: it ends with this process."""

    async def stop(self) -> None:
        """Stop it; what it held is gone."""
        await self._registry.stop()


class LocalEtcd:
    """An etcd process on free ports of the loopback address, with its data in a folder."""

    def __init__(self, binary: str, data_dir: Path | None, say: Say) -> None:
        self.url = ""
        self._binary = binary
        self._say = say
        self._folder = data_dir
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 when it does not run."""
        return self._child.pid if self._child is not None else 0

    async def start(self) -> None:
        """Start it and wait until it answers. Raises `ChildFailed`."""
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="mesh-etcd-")
            self._folder = Path(self._temporary.name)
        for left in reversed(range(ETCD_TRIES)):
            client, peer = free_ports(2)
            self.url = f"http://127.0.0.1:{client}"
            self._child = Child(
                "etcd",
                lambda _, argv=self._argv(client, peer): argv,  # type: ignore[misc]  # bound now
                say=self._say,
                relay=lambda _: None,
                probe=self._answers,
            )
            try:
                await self._child.start()
            except ChildFailed:
                if not left:
                    raise
            else:
                return

    async def keep(self) -> None:
        """Start it again, on its data, whenever it ends."""
        if self._child is not None:
            await self._child.keep()

    async def stop(self) -> None:
        """End it and remove its temporary folder."""
        if self._child is not None:
            await self._child.stop(STOP_S)
        if self._temporary is not None:
            await asyncio.to_thread(self._temporary.cleanup)

    def _argv(self, client: int, peer: int) -> Sequence[str]:
        url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        etcd = [self._binary, "--name", "mesh", "--data-dir", str(self._folder), "--logger", "zap"]
        etcd += ["--log-level", "error", "--listen-client-urls", url, "--advertise-client-urls", url]
        etcd += ["--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url]
        etcd += ["--initial-cluster", f"mesh={peer_url}"]
        return [sys.executable, "-m", "mesh.cli.leash", str(os.getpid()), *etcd]

    async def _answers(self) -> Ready:
        from mesh.registry.etcd_client import EtcdClient  # noqa: PLC0415 - grpc is slow to import

        address = self.url.removeprefix("http://")
        client = EtcdClient(RegistryConfig(endpoints=(address,)))
        try:
            await client.wait_ready(lambda _: None)
        finally:
            await client.close()
        return Ready(grpc=address)


def free_ports(count: int) -> list[int]:
    """Return `count` different ports of the loopback address that are free now.

    Where the kernel tells which ports it gives to callers, they are below those: who tries to reach a registry that is
    away for a moment would be given its very port sooner or later, connect to itself, and keep the registry out.
    """
    quiet = quiet_ports()
    held: list[socket.socket] = []
    try:
        for port in random.sample(quiet, min(len(quiet), PORT_TRIES)):
            if len(held) == count:
                break
            with suppress(OSError):
                held.append(socket.create_server(("127.0.0.1", port)))
        while len(held) < count:
            held.append(socket.create_server(("127.0.0.1", 0)))
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


def quiet_ports() -> range:
    """Return ports below those that the kernel gives to callers; none where it does not tell."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return range(0)
    return range(10_000, max(10_000, first))
