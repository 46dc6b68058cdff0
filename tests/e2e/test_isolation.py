"""Models in worker processes that do the worst, on real nodes: they take nothing but themselves along."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pytest

from mesh.api.messages import control
from mesh_client import Client, MeshClientError
from tests.fixtures.cluster import Cluster, cluster, copies
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import until
from tests.fixtures.repositories import add_echo, add_python
from tests.fixtures.workers import alive, descendants

pytestmark = pytest.mark.timeout(300)

SIGNATURE = """\
inputs: [{name: x, dtype: FP32, shape: [-1, 1]}]
outputs: [{name: y, dtype: FP32, shape: [-1, 1]}]
"""
FINE, POISON = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
LONG_S = 60.0
"""Deadline of calls that are answered: these machines are slow and noisy."""

ENDS = {"a segmentation fault": "ctypes.string_at(0)", "an exit": "os._exit(3)"}

CULPRITS = {
    "unary": (
        SIGNATURE,
        """
        import ctypes, os

        class Model:
            def infer(self, inputs):
                if inputs["x"].any():
                    {end}
                return {{"y": inputs["x"]}}
        """,
    ),
    "sequence": (
        "sequence: {}\n" + SIGNATURE,
        """
        import ctypes, os

        class Model:
            def infer(self, inputs, sequences):
                if inputs["x"].any():
                    {end}
                return {{"y": inputs["x"]}}
        """,
    ),
    "decoupled": (
        "decoupled: true\n" + SIGNATURE,
        """
        import ctypes, os

        class Model:
            def infer(self, inputs):
                yield {{"y": inputs["x"]}}
                if inputs["x"].any():
                    {end}
                yield {{"y": inputs["x"]}}
        """,
    ),
}


def step(client: Client, model: str, x: Any) -> float:
    """Run a sequence of two steps, the second of which is `x`."""
    with client.session(model, resume_s=0) as session:
        session.step({"x": FINE})
        return float(session.step({"x": x}, end=True)["y"][0, 0])


def streamed(client: Client, model: str, x: Any) -> float:
    """Return the last response of a decoupled model, or of any over a stream."""
    with client.stream() as stream:
        stream.send(model, {"x": x})
        stream.half_close()
        return float([each["y"][0, 0] for each in stream][-1])


def answered(call: Callable[[Client, Any], float], client: Client) -> float:
    """Return what a call is answered once the model's pause is over, which callers are told of till then."""

    def again() -> list[float]:
        try:
            return [call(client, FINE)]
        except MeshClientError as error:
            if "is started again" not in str(error):
                raise
            return []

    found: list[float] = until(again, what="it is answered")
    return found[0]


def plain(model: str) -> Callable[[Client, Any], float]:
    """Return a call of a model."""
    return lambda client, x: float(client.infer(model, {"x": x}, timeout_s=LONG_S)["y"][0, 0])


WAYS: dict[str, tuple[str, Any]] = {
    "unary": ("unary", plain("unary")),
    "over a stream": ("unary", lambda client, x: streamed(client, "unary", x)),
    "in a pipeline": ("unary", plain("line")),
    "a step of a sequence": ("sequence", lambda client, x: step(client, "sequence", x)),
    "a decoupled one": ("decoupled", lambda client, x: streamed(client, "decoupled", x)),
}


def echo(client: Client) -> list[list[float]]:
    found: list[list[float]] = client.infer("echo", {"x": FINE}, timeout_s=LONG_S)["y"].tolist()
    return found


class Neighbour:
    """Calls of an innocent model, one after the other, for as long as the block lasts."""

    def __init__(self, address: str) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(address,))

    def _run(self, address: str) -> None:
        with Client(address) as client:
            while not self._stop.is_set():
                try:
                    echo(client)
                except MeshClientError as error:
                    self.failed.append(str(error))
                self.answered += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def templates(mesh: Cluster) -> set[int]:
    """Return every process that nodes started."""
    return {each for node in mesh.nodes.values() for each in descendants(node.pid)}


@contextmanager
def nothing_left(mesh: Cluster) -> Iterator[None]:
    """See that no process of a node outlives it, once the block has ended the nodes."""
    family = templates(mesh)
    assert family
    yield
    until(lambda: not any(alive(each) for each in family), what="no process is left")


@pytest.mark.parametrize("end", list(ENDS))
def test_a_model_that_ends_its_process_takes_no_node_and_no_other_model(
    etcd: EtcdServer, tmp_path: Path, end: str
) -> None:
    """Three deaths in a row are one too many: each way in has a model of its own."""
    add_echo(tmp_path)
    for name, (yaml, code) in CULPRITS.items():
        add_python(tmp_path, name, yaml, code.format(end=ENDS[end]))
    with cluster(etcd.address, tmp_path, "abc") as (mesh, client):
        line = control.Pipeline(
            name="line",
            steps=[
                control.Step(name="a", model="echo", inputs={"x": "$x"}),
                control.Step(name="b", model="unary", inputs={"x": "a.y"}),
            ],
            outputs={"y": "b.y"},
        )
        until(lambda: len(client.models()) == 4, what="the models are known")
        assert not client.apply_pipeline(line).problems
        pids = mesh.pids
        assert echo(client) == [[0.0]]
        with Neighbour(mesh.router.grpc) as neighbour:
            for way, (model, call) in WAYS.items():
                assert answered(call, client) == 0.0, way
                with pytest.raises(MeshClientError) as caught:
                    call(client, POISON)
                assert "worker process" in str(caught.value), way
                until(lambda model=model: client.explain(model)[0].suspected, what="it is known")  # type: ignore[misc] # bound
                client.release(model)
                until(lambda model=model: not client.explain(model)[0].suspected, what="it is released")  # type: ignore[misc] # bound
        assert neighbour.answered > 10
        assert neighbour.failed == []
        assert mesh.dead == []
        assert mesh.pids == pids


@pytest.mark.parametrize("where", ["load", "__init__"])
def test_a_model_that_ends_its_process_in_its_load_is_quarantined_and_nobody_else_notices(
    etcd: EtcdServer, tmp_path: Path, where: str
) -> None:
    add_echo(tmp_path)
    head = "def load(self, context):" if where == "load" else "def __init__(self):"
    for name, end in (("leaves", "sys.exit(3)"), ("ends", "os._exit(3)")):
        add_python(
            tmp_path,
            name,
            SIGNATURE,
            f"""
            import os, sys

            class Model:
                {head}
                    {end}

                def infer(self, inputs):
                    return inputs
            """,
        )
    with cluster(etcd.address, tmp_path, "ab") as (mesh, client):
        until(lambda: len(client.models()) == 3, what="the models are known")
        echo(client)
        with Neighbour(mesh.router.grpc) as neighbour:
            with pytest.raises(MeshClientError, match="raised SystemExit: 3"):
                client.infer("leaves", {"x": FINE}, timeout_s=LONG_S)

            def state() -> str:
                with pytest.raises(MeshClientError):
                    client.infer("ends", {"x": FINE}, timeout_s=2)
                found: str = client.models("ends")[0].state
                return found

            until(lambda: state() == "quarantined", what="it is quarantined")
            with pytest.raises(MeshClientError, match="its worker process ended itself with exit code 3") as caught:
                client.infer("ends", {"x": FINE}, timeout_s=LONG_S)
        assert caught.value.reason == "QUARANTINED"
        assert not client.explain("leaves")[0].suspected
        assert neighbour.answered > 10
        assert neighbour.failed == []
        assert mesh.dead == []


def test_an_exit_in_a_run_fails_its_call_alone(etcd: EtcdServer, tmp_path: Path) -> None:
    add_python(
        tmp_path,
        "leaves",
        "max_batch_size: 8\n" + SIGNATURE,
        """
        import sys

        class Model:
            def infer(self, inputs):
                if inputs["x"].any():
                    sys.exit(3)
                return {"y": inputs["x"]}
        """,
    )
    with cluster(etcd.address, tmp_path, "a") as (mesh, client):
        for x in [FINE, POISON] * 5:
            if x is FINE:
                assert client.infer("leaves", {"x": x}, timeout_s=LONG_S)["y"].tolist() == [[0.0]]
                worker = copies(client, "leaves")[0].changed_s
                continue
            with pytest.raises(MeshClientError, match="model 'leaves' raised SystemExit: 3"):
                client.infer("leaves", {"x": x}, timeout_s=LONG_S)
        assert copies(client, "leaves")[0].changed_s == worker
        assert not client.explain("leaves")[0].suspected
        assert mesh.dead == []


def test_a_regular_expression_that_never_ends_keeps_no_neighbour_waiting(etcd: EtcdServer, tmp_path: Path) -> None:
    """It holds its interpreter's lock. The neighbour's calls go on, and so does the node's lease."""
    add_echo(tmp_path)
    add_python(
        tmp_path,
        "pattern",
        "max_run_s: 8\n" + SIGNATURE,
        """
        import re

        class Model:
            def infer(self, inputs):
                if inputs["x"].any():
                    re.match(r"(a|a?)+$", "a" * 64 + "b")
                return {"y": inputs["x"]}
        """,
    )
    with cluster(etcd.address, tmp_path, "a", "--lease-ttl-s", "2", logs=tmp_path) as (mesh, client):
        echo(client)
        assert client.infer("pattern", {"x": FINE}, timeout_s=LONG_S)["y"].tolist() == [[0.0]]
        with Neighbour(mesh.router.grpc) as neighbour:
            with pytest.raises(MeshClientError, match=r"a run did not end within 8 s \(max_run_s\)"):
                client.infer("pattern", {"x": POISON}, timeout_s=LONG_S)
            during = neighbour.answered
        assert during > 50
        assert neighbour.failed == []
        assert answered(plain("pattern"), client) == 0.0
        assert mesh.dead == []
        assert "lease" not in (tmp_path / "a.log").read_text()


HANGS = """
import signal, time

class Model:
    def load(self, context):
        for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        time.sleep(1000)

    def infer(self, inputs):
        return inputs
"""


def workers_of(mesh: Cluster, name: str) -> set[int]:
    """Return the workers of a node: what the process that it forks them from has as children."""
    (template,) = [each.pid for each in psutil.Process(mesh.nodes[name].pid).children()]
    return {each.pid for each in psutil.Process(template).children()}


def test_loads_that_never_end_keep_nothing_and_nobody(etcd: EtcdServer, tmp_path: Path) -> None:
    add_echo(tmp_path)
    for at in range(3):
        add_python(tmp_path, f"hangs{at}", SIGNATURE, HANGS)
    with cluster(etcd.address, tmp_path, "a", "--drain-s", "2", "--move-s", "1") as (mesh, client):
        until(lambda: len(client.models()) == 4, what="the models are known")
        for at in range(3):
            with pytest.raises(MeshClientError):
                client.infer(f"hangs{at}", {"x": FINE}, timeout_s=1)
        until(lambda: len(workers_of(mesh, "a")) >= 2, what="they load")
        assert echo(client) == [[0.0]]
        until(lambda: len(workers_of(mesh, "a")) == 4, what="all of them load")
        before = workers_of(mesh, "a")
        client.unload("hangs0")
        gone = until(lambda: before - workers_of(mesh, "a"), what="the load is ended")
        assert len(gone) == 1
        assert echo(client) == [[0.0]]
        with nothing_left(mesh):
            assert mesh.nodes["a"].stop() == 0


def test_a_run_that_hangs_is_ended_and_the_copy_answers_later_calls(etcd: EtcdServer, tmp_path: Path) -> None:
    code = """
    import time

    class Model:
        def infer(self, inputs):
            if inputs["x"].any():
                time.sleep(1000)
            return {"y": inputs["x"]}
    """
    add_python(tmp_path, "hangs", "max_run_s: 3\n" + SIGNATURE, code)
    add_python(tmp_path, "waits", SIGNATURE, code)
    with cluster(etcd.address, tmp_path, "a", "--drain-s", "2", "--move-s", "1", logs=tmp_path) as (mesh, client):
        assert client.infer("hangs", {"x": FINE}, timeout_s=LONG_S)["y"].tolist() == [[0.0]]
        with pytest.raises(MeshClientError, match=r"a run did not end within 3 s \(max_run_s\)"):
            client.infer("hangs", {"x": POISON}, timeout_s=LONG_S)
        assert answered(plain("hangs"), client) == 0.0
        assert "a run did not end within 3 s" in (tmp_path / "a.log").read_text()
        assert "a run did not end within 3 s" in client.explain("hangs")[0].suspected
        # Without a limit it goes on, and still the node ends in its time.
        with pytest.raises(MeshClientError):
            client.infer("waits", {"x": POISON}, timeout_s=2)
        with nothing_left(mesh):
            assert mesh.nodes["a"].stop() == 0


@pytest.mark.parametrize("isolation", ["process", "none"])
def test_a_model_that_took_more_than_the_node_has_is_refused_and_the_others_stay(
    etcd: EtcdServer, tmp_path: Path, isolation: str
) -> None:
    add_echo(tmp_path)
    add_python(
        tmp_path,
        "large",
        f"isolation: {isolation}\n" + SIGNATURE,
        """
        import numpy as np

        class Model:
            def load(self, context):
                self.held = np.ones(400_000_000, np.uint8)

            def infer(self, inputs):
                return {"y": inputs["x"]}
        """,
    )
    with cluster(etcd.address, tmp_path, "a", "--memory-bytes", "150000000") as (mesh, client):
        echo(client)
        before = psutil.Process(mesh.nodes["a"].pid).memory_info().rss
        with Neighbour(mesh.router.grpc) as neighbour, pytest.raises(MeshClientError) as caught:
            client.infer("large", {"x": FINE}, timeout_s=20)

        def why() -> str:
            return " ".join(
                [str(caught.value), *(copy.error for each in client.models("large") for copy in each.copies)]
            )

        found = until(lambda: re.search(r"it took (\d+) bytes", why()), what="why")
        assert int(found.group(1)) > 150_000_000
        assert neighbour.failed == []
        assert neighbour.answered > 5
        assert len(copies(client, "echo")) == 1
        assert not copies(client, "large")
        assert mesh.dead == []
        until(
            lambda: psutil.Process(mesh.nodes["a"].pid).memory_info().rss < before + 150_000_000,
            what="it is given back",
        )


def test_models_with_files_of_the_same_name_get_their_own(etcd: EtcdServer, tmp_path: Path) -> None:
    """In workers and in the node, and after a change the new ones."""
    kinds = {"one": "process", "two": "process", "three": "none", "four": "none"}
    for at, (name, isolation) in enumerate(kinds.items()):
        add_python(
            tmp_path,
            name,
            f"isolation: {isolation}\n" + SIGNATURE,
            """
            import utils
            from .utils import scale

            class Model:
                def infer(self, inputs):
                    from utils import value
                    return {"y": scale(inputs["x"]) + utils.value()}
            """,
        )
        (tmp_path / name / "1" / "utils.py").write_text(
            f"def value():\n    return {at}\n\ndef scale(x):\n    return x * {at}\n"
        )
    with cluster(etcd.address, tmp_path, "a", "--repository-poll-s", "0.2") as (_, client):
        for at, name in enumerate(kinds):
            assert client.infer(name, {"x": POISON * 10}, timeout_s=LONG_S)["y"].tolist() == [[11.0 * at]]
        for at, name in enumerate(kinds):
            (tmp_path / name / "1" / "utils.py").write_text(
                f"def value():\n    return {at}\n\ndef scale(x):\n    return x * {9 - at}\n"
            )

        def changed() -> bool:
            found = [client.infer(name, {"x": POISON * 10}, timeout_s=LONG_S)["y"][0, 0] for name in kinds]
            return found == [10.0 * (9 - at) + at for at in range(4)]

        until(changed, what="the new files run")


def test_what_a_model_prints_and_raises_is_in_the_log_with_its_name(etcd: EtcdServer, tmp_path: Path) -> None:
    add_echo(tmp_path)
    add_python(
        tmp_path,
        "talks",
        SIGNATURE,
        """
        import ctypes, os, sys, threading

        def endless():
            while True:
                print("and on and on " * 20)

        class Model:
            def load(self, context):
                print("hello from load", flush=True)
                os.write(2, b"from C, as it were\\n")

            def infer(self, inputs):
                if inputs["x"].any():
                    raise ValueError("this is why")
                if not hasattr(self, "thread"):
                    self.thread = threading.Thread(target=endless, daemon=True)
                    self.thread.start()
                return {"y": inputs["x"]}
        """,
    )
    with cluster(etcd.address, tmp_path, "a", "--log-json", logs=tmp_path) as (mesh, client):
        log = tmp_path / "a.log"

        def lines(**fields: str) -> list[dict[str, Any]]:
            found = []
            for line in log.read_text().splitlines():
                if line.startswith("{"):
                    each = json.loads(line)
                    if fields.items() <= each.items():
                        found.append(each)
            return found

        until(lambda: client.models("talks"), what="the mesh knows the model")
        with pytest.raises(MeshClientError, match="model 'talks' raised ValueError: this is why"):
            client.infer("talks", {"x": POISON}, id="request-7", timeout_s=LONG_S)
        for stream, text in (("stdout", "hello from load"), ("stderr", "from C, as it were")):
            until(
                lambda stream=stream, text=text: lines(model="talks", version="1", stream=stream, line=text),  # type: ignore[misc] # bound
                what="what it printed is in the log",
            )
        (raised,) = until(lambda: lines(model="talks", request_id="request-7"), what="what it raised is in the log")
        assert raised["error"] == "ValueError: this is why"
        assert 'raise ValueError("this is why")' in raised["traceback"]
        client.infer("talks", {"x": FINE}, timeout_s=LONG_S)
        size = log.stat().st_size
        with Neighbour(mesh.router.grpc) as neighbour:
            until(lambda: neighbour.answered > 200, what="the neighbour is answered")
        assert neighbour.failed == []
        until(
            lambda: lines(model="talks", event="printed more") or "printed more" in log.read_text(),
            what="lines are left out",
        )
        assert log.stat().st_size - size < 10_000_000
