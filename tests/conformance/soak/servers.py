"""The router and the node that the soak's programs call, and what they count of their clients' connections."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from mesh.api import messages as m
from tests.fixtures import raw
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import Process, free_port, until
from tests.fixtures.repositories import add_echo, add_patient, add_python

ANSWERS_S: Final = 120.0
QUIET_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What a server has counted of its clients' connections."""

    open: int
    opened: int
    goaways: dict[str, int]


NONE: Final = Counts(0, 0, {})
"""Of a process that begins."""


class Server:
    """A router or node that starts again on its own ports."""

    def __init__(self, kind: str, *flags: str) -> None:
        self.kind = kind
        ports = ("--grpc-port", str(free_port()), "--http-port", str(free_port()))
        self._command = (kind, *ports, "--json-ready", "--settle-s", "0", "--drain-s", "5", *flags)
        self.process = Process(*self._command)

    @property
    def address(self) -> str:
        return self.process.grpc

    def counts(self) -> Counts:
        """Return its counts now."""
        with urllib.request.urlopen(f"http://{self.process.http}/metrics", timeout=60) as response:
            text = response.read().decode()
        prefix = f"mesh_{self.kind}_"
        numbers: dict[str, int] = {}
        goaways: dict[str, int] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"{prefix}goaways_total":
                    goaways[sample.labels["code"]] = int(sample.value)
                elif sample.name.startswith(f"{prefix}connections"):
                    numbers[sample.name.removeprefix(prefix)] = int(sample.value)
        return Counts(numbers["connections"], numbers["connections_opened_total"], goaways)

    def quiet(self, before: Counts) -> Counts:
        """Return its counts once no more connections are open than `before`."""
        found = self.counts()
        end_s = time.monotonic() + QUIET_S
        while found.open > before.open and time.monotonic() < end_s:
            time.sleep(0.05)
            found = self.counts()
        return found

    def restart(self) -> float:
        """End it by SIGTERM and start it again; return when it began to end. Its counts begin anew."""
        ended_s = time.time()
        assert self.process.stop() == 0
        self.process = Process(*self._command).wait_ready()
        return ended_s


def _wait_answers(address: str) -> None:
    """Wait until iris answers; a model is loaded on the way."""

    def answers() -> bool:
        with raw.channel_to(address) as channel:
            try:
                raw.infer(channel, raw.request("iris"))
            except Exception:  # noqa: BLE001 - whatever it is, the deadline counts
                return False
        return True

    until(answers, what=f"{address} answers", deadline_s=ANSWERS_S)


class Servers:
    """A router before a node, with the models and requests of the cells."""

    def __init__(self, folder: Path, registry: str) -> None:
        models = folder / "models"
        add_patient(models)
        add_echo(models)
        add_python(
            models,
            "first",
            """\
            inputs: [{name: x, dtype: FP32, shape: [-1, -1]}]
            outputs: [{name: y, dtype: FP32, shape: [-1, 1]}]
            """,
            """\
            class Model:
                def infer(self, inputs):
                    return {"y": inputs["x"][:, :1].copy()}
            """,
        )
        self._requests = {
            "iris": (_request(folder, "iris", raw.request("iris")), 8),
            "echo": (_request(folder, "echo", _floats("echo", 150_000)), 600_000),
            "first": (_request(folder, "first", _floats("first", 2_000_000)), 4),
        }
        self._of = {
            "node": Server("node", "--id", "a", "--models", str(models), "--registry", registry),
            "router": Server("router", "--registry", registry),
        }

    def of(self, target: str) -> Server:
        """Return the router or the node."""
        return self._of[target]

    def asks(self, model: str) -> list[str]:
        """Return the flags with which a program calls a model."""
        path, answer_bytes = self._requests[model]
        return ["--request", str(path), "--answer-bytes", str(answer_bytes)]

    def load(self) -> None:
        """Wait until both are there, and have the node hold all models."""
        for server in self._of.values():
            server.process.wait_ready()
        with raw.channel_to(self._of["router"].address) as channel:
            for model in self._requests:
                raw.wait_known(channel, model)
                request = m.RepositoryModelLoadRequest(model_name=model)
                raw.ask(channel, "RepositoryModelLoad", request, m.RepositoryModelLoadResponse)
        for server in self._of.values():
            _wait_answers(server.address)

    def stop(self) -> None:
        """End both."""
        for server in reversed(self._of.values()):
            server.process.__exit__(None, None, None)


def _floats(model: str, count: int) -> m.ModelInferRequest:
    return raw.request(model, np.ones(count, np.float32).tobytes(), shape=(1, count))


def _request(folder: Path, name: str, message: m.ModelInferRequest) -> Path:
    path = folder / f"{name}.request"
    path.write_bytes(message.SerializeToString())
    return path


@contextmanager
def serving(folder: Path) -> Iterator[Servers]:
    """Run an etcd, a node and a router before it."""
    etcd = EtcdServer(folder / "etcd")
    etcd.launch_and_wait()
    try:
        servers = Servers(folder, etcd.address)
        try:
            servers.load()
            yield servers
        finally:
            servers.stop()
    finally:
        etcd.kill()
