"""Machines whose wall clocks are an hour apart: ages are measured by one clock each, so that nothing is early or late.

Every process here has its monotonic clock as it is; `tests.fixtures.clocks` moves the wall clock alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from mesh_client import Client, MeshClientError
from tests.fixtures.clocks import Clock
from tests.fixtures.cluster import copies
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import Process, start_node, start_router, until
from tests.fixtures.repositories import add_python

HOUR_S = 3600
FINE, POISON = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
SHAPES = """\
inputs: [{name: x, dtype: FP32, shape: [-1, 1]}]
outputs: [{name: y, dtype: FP32, shape: [-1, 1]}]
"""


class Machines:
    """Routers and nodes, each with a clock of its own, that end with the test."""

    def __init__(self, registry: str, folder: Path, ending: ExitStack) -> None:
        self._registry, self._ending = registry, ending
        self.repository = folder / "repository"
        self.repository.mkdir()
        self._folder = folder

    def clock(self, name: str, offset_s: int) -> Clock:
        return Clock(self._folder / f"{name}.clock", offset_s)

    def router(self, name: str, clock: Clock) -> tuple[Process, Client]:
        started = start_router(self._registry, log=self._folder / f"{name}.log", env=clock.environment)
        router = self._ending.enter_context(started).wait_ready()
        return router, self._ending.enter_context(Client(router.grpc))

    def node(self, name: str, clock: Clock) -> Process:
        started = start_node(
            self._registry,
            name,
            *("--http-port", "0"),
            models=self.repository,
            log=self._folder / f"{name}.log",
            env=clock.environment,
        )
        return self._ending.enter_context(started).wait_ready()

    def said(self, name: str, text: str) -> int:
        return (self._folder / f"{name}.log").read_text().count(text)

    def wait_said(self, name: str, text: str) -> None:
        until(lambda: self.said(name, text), what=f"{name} says: {text}")


@pytest.fixture
def machines(etcd: EtcdServer, tmp_path: Path) -> Iterator[Machines]:
    """No machine yet, and an etcd for all that there will be."""
    with ExitStack() as ending:
        yield Machines(etcd.address, tmp_path, ending)


def add_fragile(machines: Machines, name: str) -> Callable[[], None]:
    """Write a model whose load fails until what is returned is called; its files stay as they are."""
    mended = machines.repository.parent / f"{name}.mended"
    add_python(
        machines.repository,
        name,
        SHAPES,
        f"""\
        import pathlib

        class Model:
            def load(self, context):
                if not pathlib.Path({str(mended)!r}).exists():
                    raise RuntimeError("it lacks what it needs")

            def infer(self, inputs):
                return {{"y": inputs["x"]}}
        """,
    )
    return mended.touch


@contextmanager
def fails(text: str) -> Iterator[None]:
    with pytest.raises(MeshClientError, match=text):
        yield


@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S], ids=["ahead", "behind"])
def test_a_failed_load_is_tried_again_whatever_clock_it_was_asked_by(machines: Machines, offset_s: int) -> None:
    """One router is off; the other, the node and the operator are not."""
    mend = [add_fragile(machines, name) for name in ("for_callers", "for_operators")]
    machines.node("a", machines.clock("a", 0))
    _, off = machines.router("off", machines.clock("off", offset_s))
    _, right = machines.router("right", machines.clock("right", 0))
    for name in ("for_callers", "for_operators"):
        with fails("it lacks what it needs"):
            off.infer(name, {"x": FINE}, timeout_s=60)
        with fails("it lacks what it needs"):
            right.infer(name, {"x": FINE}, timeout_s=60)
    assert machines.said("a", "load failed") == 2
    for each in mend:
        each()
    began_s = time.monotonic()
    right.load("for_operators", timeout_s=60)
    assert off.infer("for_operators", {"x": FINE}, timeout_s=60)["y"].tolist() == [[0.0]]

    def answered(client: Client) -> bool:
        try:
            return bool(client.infer("for_callers", {"x": FINE}, timeout_s=60)["y"].tolist() == [[0.0]])
        except MeshClientError:
            return False

    until(lambda: answered(right), what="the error is forgotten after its ten seconds")
    assert time.monotonic() - began_s > 5
    assert answered(off)


def test_an_operators_load_through_the_router_that_is_behind_tries_again_at_once(machines: Machines) -> None:
    mend = add_fragile(machines, "model")
    machines.node("a", machines.clock("a", 0))
    _, right = machines.router("right", machines.clock("right", 0))
    _, behind = machines.router("behind", machines.clock("behind", -HOUR_S))
    with fails("it lacks what it needs"):
        right.infer("model", {"x": FINE}, timeout_s=60)
    with fails("it lacks what it needs"):
        behind.load("model", timeout_s=60)
    assert machines.said("a", "load failed") == 2
    mend()
    behind.load("model", timeout_s=60)
    assert right.infer("model", {"x": FINE}, timeout_s=60)["y"].tolist() == [[0.0]]


def test_the_leaders_clock_set_back_keeps_minimums_of_new_models(machines: Machines) -> None:
    clock = machines.clock("leader", 0)
    machines.node("a", machines.clock("a", 0))
    _, client = machines.router("leader", clock)
    machines.wait_said("leader", "leads the placement")
    for place, offset_s in enumerate((-HOUR_S, HOUR_S, 0)):
        clock.set(offset_s)
        name = f"model{place}"
        add_python(
            machines.repository,
            name,
            f"scaling: {{min_copies: 1}}\n{SHAPES}",
            """\
            class Model:
                def infer(self, inputs):
                    return {"y": inputs["x"]}
            """,
        )
        until(lambda name=name: name in {each.name for each in client.models()}, what="it is known")  # type: ignore[misc] # a lambda's default
        until(lambda name=name: copies(client, name), what=f"{name} has its copy")  # type: ignore[misc] # the same


@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S], ids=["ahead", "behind"])
def test_a_quarantine_is_as_long_as_it_is(machines: Machines, offset_s: int) -> None:
    """The node that saw the deaths is off; the router that refuses callers is not."""
    add_python(
        machines.repository,
        "culprit",
        SHAPES,
        """\
        import os

        class Model:
            def infer(self, inputs):
                if inputs["x"].any():
                    os._exit(3)
                return {"y": inputs["x"]}
        """,
    )
    machines.node("a", machines.clock("a", offset_s))
    _, client = machines.router("right", machines.clock("right", 0))
    assert client.infer("culprit", {"x": FINE}, timeout_s=60)["y"].tolist() == [[0.0]]

    def refused() -> float:
        with pytest.raises(MeshClientError) as caught:
            client.infer("culprit", {"x": POISON}, timeout_s=60)
        return float(caught.value.retry_after_s or 0) if caught.value.reason == "QUARANTINED" else 0.0

    first_s = until(refused, what="it is quarantined")
    assert 50 < first_s <= 60
    # By another caller's clock as well, it goes on by a second a second.
    began_s = time.monotonic()
    until(lambda: refused() < first_s - 3, what="three seconds less are left")
    assert time.monotonic() - began_s >= 3
    _, anew = machines.router("anew", machines.clock("anew", 0))
    with pytest.raises(MeshClientError) as caught:
        anew.infer("culprit", {"x": FINE}, timeout_s=60)
    assert caught.value.reason == "QUARANTINED"
