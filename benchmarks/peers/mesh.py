"""The mesh: one registry, one node, one router, and the peers that are parts of it.

The node is what every proxy stands before, so it moves: to the servers' core when it is measured, to the load's core
when a proxy is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.machine import LOAD_CORE, SERVER_CORE, children, pin
from benchmarks.models import Case, write_python_repository, write_repository
from benchmarks.peers.base import SERVERS, Peer, Process

COMMAND = (sys.executable, "-m", "mesh.cli.main")


TRACED = 0.01
"""The share of requests that router and node record spans of, as one does in production."""
TRACES = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
"""Where spans go: nobody listens there, so that no collector takes CPU; batching and sending are tried all the same."""


class Mesh:
    """The processes. `engine` is what carries HTTP/2 in them, given as --wire; "" leaves the flag out."""

    def __init__(self, engine: str, isolation: str = "") -> None:
        """`isolation`: serve the models as Python classes, and run them so; empty: serve the ONNX files themselves."""
        self._isolation = isolation
        self.router_address = self.node_address = ""
        self.router_pid = self.node_pid = 0
        self._wire = ["--wire", engine] if engine else []
        self._processes: list[Process] = []

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Start all three and load the models; `stop` them even when this fails. Raises as `Peer.start` does."""
        repository = folder / f"models{self._isolation}"
        write = write_python_repository if self._isolation else write_repository
        write(repository, cases)
        registry = self._start(folder, "registry", [sys.executable, str(SERVERS / "registry.py")], core=LOAD_CORE)
        common = ["--registry", registry.line().strip(), "--grpc-port", "0", "--http-port", "0", "--json-ready"]
        common += ["--trace-sample", str(TRACED)]
        node = [*COMMAND, "node", "--id", "n1", "--models", str(repository), *common, *self._wire]
        node += ["--isolation", self._isolation] if self._isolation else []
        router = [*COMMAND, "router", *common, *self._wire]
        self.node_address, self.node_pid = _ready(self._start(folder, "node", node, core=SERVER_CORE))
        self.router_address, self.router_pid = _ready(self._start(folder, "router", router, core=SERVER_CORE))
        # The node loads a model when the router is called for it.
        Router(self).start(folder, cases)

    def stop(self) -> None:
        """Stop the router, then the node, then the registry."""
        while self._processes:
            self._processes.pop().stop()

    def place_node(self, core: int) -> None:
        """Move the node."""
        pin(self.node_pid, core)

    def _start(self, folder: Path, name: str, command: list[str], *, core: int) -> Process:
        process = Process(folder / f"{name}{self._isolation}.log", command, core=core, env=TRACES, says=True)
        self._processes.append(process)
        return process


def _ready(process: Process) -> tuple[str, int]:
    """Return the gRPC address and the process that the ready line names. Raises `Unavailable`."""
    line = json.loads(process.line())
    return line["grpc"], line["pid"]


class Part(Peer):
    """A part of the running mesh."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self.mesh = mesh
        self.required = True

    def stop(self) -> None:
        """Leave it to the mesh."""


class Together(Part):
    """Router and node on one core: what one core of a whole mesh does."""

    key, name = "mesh", "mesh (router + node)"

    def start(self, folder: Path, cases: list[Case]) -> None:  # noqa: ARG002 - the mesh has started it
        """Use the running mesh."""
        self.address = self.mesh.router_address
        self.parts = {"router": self.mesh.router_pid, "node": self.mesh.node_pid}
        self.check_all(cases)


class Router(Part):
    """The router alone; the node is its upstream."""

    key, name = "router", "mesh router"

    def start(self, folder: Path, cases: list[Case]) -> None:  # noqa: ARG002 - the mesh has started it
        """Use the running mesh's router."""
        self.address = self.mesh.router_address
        self.parts = {"router": self.mesh.router_pid}
        self.check_all(cases)


class Node(Part):
    """The node, called straight: it speaks the same protocol."""

    key, name = "node", "mesh node"

    def start(self, folder: Path, cases: list[Case]) -> None:  # noqa: ARG002 - the mesh has started it
        """Use the running mesh's node."""
        self.address = self.mesh.node_address
        self.parts = {"node": self.mesh.node_pid}
        self.check_all(cases)


class PythonNode(Peer):
    """A node of its own, called straight, whose models are Python classes that run ONNX Runtime, as Triton's are.

    They batch, as Triton's Python backend hands over all requests that wait. With `isolation` "process" each runs in a
    worker process, as a Triton model does; with "none" in the node.
    """

    def __init__(self, engine: str, isolation: str, key: str, name: str) -> None:
        super().__init__()
        self.key, self.name = key, name
        self._mesh = Mesh(engine, isolation)
        self.required = True

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Start the mesh and check its node."""
        self._mesh.start(folder, cases)
        self.address = self._mesh.node_address
        self.parts = {"node": self._mesh.node_pid}
        for template in children(self._mesh.node_pid):
            self.parts |= {"template": template}
            self.parts |= {f"worker {at}": pid for at, pid in enumerate(children(template), 1)}
        self.check_all(cases)

    def stop(self) -> None:
        """Stop the mesh."""
        self._mesh.stop()
