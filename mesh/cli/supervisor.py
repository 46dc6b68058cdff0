"""A whole mesh on one machine: a registry, a router and nodes as processes, started, watched and stopped in order.

`mesh.cli.up` makes the plan from flags; `mesh.cli.children` knows how to keep one process running.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mesh.cli.children import Child, ChildFailed, Ready, Say
from mesh.cli.local_registry import LocalRegistry
from mesh.cli.plan import Plan
from mesh.cli.probe import RouterProbe
from mesh.core.journal import exit_note

DRAIN_S: Final = 30.0
"""How long router and nodes wait for calls in flight when the mesh stops."""
MARGIN_S: Final = 10.0
"""How much longer they may take for the rest before they are killed."""


@dataclass(frozen=True, slots=True)
class Running:
    """A mesh that answers."""

    router: Ready
    nodes: tuple[tuple[str, Ready], ...]
    models: int
    """Model names that can be called."""


class Supervisor:
    """Owns every process of a `mesh up`."""

    def __init__(self, plan: Plan, registry: LocalRegistry, *, say: Say, relay: Say) -> None:
        self._plan = plan
        self.registry = registry
        self.router = Child("router", self._router_argv, say=say, relay=lambda line: relay(f"router  {line}"))
        self.nodes = tuple(
            Child(
                f"node {name}",
                lambda _, name=name: self._node_argv(name),  # type: ignore[misc]  # bound now
                say=say,
                relay=lambda line, name=name: relay(f"node {name}  {line}"),  # type: ignore[misc]  # bound now
                ended=self._node_ended,
            )
            for name in plan.nodes
        )

    async def start(self, timeout_s: float) -> Running:
        """Start everything and wait until an inference would succeed.

        Raises `ChildFailed` or another `MeshError` with one sentence when a part dies or `timeout_s` passes. Cancelled
        or failed, processes may run on: `stop` ends them.
        """
        missing = RouterProbe("?")
        missing.missing = "the registry does not answer"
        try:
            async with asyncio.timeout(timeout_s):
                await self.registry.start()
                missing.missing = "router and nodes are still starting"
                starting = [asyncio.create_task(each.start()) for each in (self.router, *self.nodes)]
                try:
                    router, *nodes = await asyncio.gather(*starting)
                finally:
                    for task in starting:
                        task.cancel()
                missing = RouterProbe(reachable(router.grpc))
                models = await missing.wait(self._plan.nodes)
        except TimeoutError:
            raise ChildFailed(f"the mesh is not ready after {timeout_s:g} s: {missing.missing}") from None
        return Running(router, tuple(zip(self._plan.nodes, nodes, strict=True)), models)

    async def watch(self) -> None:
        """Start again what dies, for as long as it is not cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.registry.keep())
            for child in (self.router, *self.nodes):
                tasks.create_task(child.keep())

    async def stop(self) -> None:
        """End everything: the router first, which drains through its nodes, then the nodes, then the registry.

        Each part needs the next one to end well. Returns when all are gone. Idempotent.
        """
        await self.router.stop(DRAIN_S + MARGIN_S)
        await asyncio.gather(*(node.stop(DRAIN_S + MARGIN_S) for node in self.nodes))
        await self.registry.stop()

    def _router_argv(self, last: Ready | None) -> Sequence[str]:
        plan = self._plan
        grpc_port = port_of(last.grpc) if last is not None else plan.grpc_port
        http_port = port_of(last.http) if last is not None else plan.http_port
        flags = ["--host", plan.host, "--grpc-port", str(grpc_port), "--http-port", str(http_port)]
        # No balancer stands before this only router, so nobody needs time to hear that it leaves.
        flags += ["--server-name", plan.server_name, "--settle-s", "0", "--drain-s", f"{DRAIN_S:g}"]
        return self._argv("router", flags)

    def _node_argv(self, name: str) -> Sequence[str]:
        flags = ["--id", name, "--host", self._plan.node_host, "--drain-s", f"{DRAIN_S:g}"]
        if self._plan.node_advertise:
            flags += ["--advertise", self._plan.node_advertise]
        flags += ["--state-dir", str(self._plan.state_dir or "")]
        for folder in self._plan.models:
            flags += ["--models", str(folder)]
        return self._argv("node", flags)

    def _node_ended(self, pid: int, code: int) -> None:
        """Leave word of how a node ended for the process that comes after it: it cannot know by itself."""
        if self._plan.state_dir is not None:
            with contextlib.suppress(OSError):
                (self._plan.state_dir / exit_note(pid)).write_text(str(code))

    def _argv(self, command: str, flags: Sequence[str]) -> Sequence[str]:
        mesh = [sys.executable, "-m", "mesh.cli.main", command, "--json-ready", "--exit-with-stdin"]
        return [*mesh, "--registry", self.registry.url, *self._plan.shared_flags, *flags]


def port_of(address: str) -> int:
    """Return the port of host:port."""
    return int(address.rpartition(":")[2])


def reachable(address: str) -> str:
    """Return where a client on this machine reaches a server that listens on `address`."""
    host, _, port = address.rpartition(":")
    return f"{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"  # noqa: S104 - read, not bound
