"""What a model in a worker process may rely on: its thread, its inputs, its interpreter, its own randomness."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from mesh.core.errors import LoadFailed, ModelFailed
from mesh.node.runtimes.base import Request
from tests.fixtures.workers import Bench, batcher, number, run, until, x

DOUBLE = """
class Model:
    def infer(self, inputs):
        return {"y": inputs["x"] * 2}
"""


async def test_a_model_runs_in_a_process_of_its_own_and_answers(workers: Bench) -> None:
    copy = await workers.load(DOUBLE)
    assert (await run(copy, x(1, 2.5))).tolist() == [[2.0], [5.0]]
    assert copy.pids() < workers.family | {workers.template}
    assert copy.bytes_held() > 0
    assert repr(copy) == "<WorkerCopy m workers=1/1>"


async def test_large_tensors_and_text_go_and_come(workers: Bench) -> None:
    copy = await workers.load(
        """
        class Model:
            def infer(self, inputs):
                return {"y": inputs["x"], "t": inputs["t"]}
        """,
        """\
        inputs: [{name: x, dtype: FP32, shape: [-1, -1]}, {name: t, dtype: BYTES, shape: [-1]}]
        outputs: [{name: y, dtype: FP32, shape: [-1, -1]}, {name: t, dtype: BYTES, shape: [-1]}]
        """,
    )
    for size, texts in ((1, 1), (1000, 100), (1_000_000, 50_000), (0, 0), (3, 20_000)):
        given = np.arange(size, dtype=np.float32).reshape(1, -1)
        text = np.array([f"é{at}".encode() for at in range(texts)], object)
        found = await copy.run_alone({"x": given, "t": text}, Request())
        assert np.array_equal(found["y"], given)
        assert found["t"].tolist() == text.tolist()


async def test_load_and_every_run_are_on_one_thread(workers: Bench) -> None:
    """A connection to sqlite refuses any other thread, and so do thread-locals and CUDA contexts in their ways."""
    copy = await workers.load(
        """
        import sqlite3, threading

        class Model:
            def __init__(self):
                self.threads = {threading.get_ident()}

            def load(self, context):
                self.threads.add(threading.get_ident())
                self.base = sqlite3.connect(":memory:")
                self.base.execute("create table t (v)")

            def infer(self, inputs):
                self.threads.add(threading.get_ident())
                self.base.execute("insert into t values (1)")
                count = self.base.execute("select count(*) from t").fetchone()[0]
                assert len(self.threads) == 1, self.threads
                return {"y": inputs["x"] * 0 + count}

            def close(self):
                self.base.close()
        """
    )
    assert [await number(copy) for _ in range(3)] == [1.0, 2.0, 3.0]
    assert await copy.shut(60) == ""


async def test_instances_run_side_by_side(workers: Bench) -> None:
    """Two runs wait for each other: with one instance, neither would end."""
    barrier = workers.repository / "barrier"
    barrier.mkdir()
    copy = await workers.load(
        f"""
        import os, pathlib, time

        class Model:
            def infer(self, inputs):
                folder = pathlib.Path({str(barrier)!r})
                (folder / str(os.getpid())).touch()
                end_s = time.monotonic() + 60
                while len(list(folder.iterdir())) < 2 and time.monotonic() < end_s:
                    time.sleep(0.01)
                return {{"y": inputs["x"] + len(list(folder.iterdir()))}}
        """,
        "instances: 2",
    )
    assert copy.parallel == 2
    assert len(copy.pids()) == 2
    queue = batcher(copy)
    ran = await asyncio.gather(
        *[queue.run(x(0), Request(), 1, deadline_s=None, queue_timeout_s=None) for _ in range(2)]
    )
    assert [float(each.outputs["y"][0, 0]) for each in ran] == [2.0, 2.0]


async def test_instances_draw_different_random_numbers(workers: Bench) -> None:
    """They are forked from one process, and so is each that is started again."""
    copy = await workers.load(
        """
        import random
        import numpy as np

        class Model:
            def infer(self, inputs):
                return {"y": np.array([[np.random.random()], [random.random()]], np.float32)}
        """,
        "instances: 3",
    )
    found = [await asyncio.gather(*[run(copy, x(0)) for _ in range(1)]) for _ in range(2)]
    drawn = set()
    for worker in list(copy._workers):
        others = [each for each in copy._workers if each is not worker]
        copy._workers[:] = [worker]
        drawn.add(tuple((await run(copy, x(0))).ravel().tolist()))
        copy._workers[:] = [*others, worker]
    assert len(found) == 2
    assert len({each[0] for each in drawn}) == 3
    assert len({each[1] for each in drawn}) == 3


async def test_inputs_may_be_written_to_alone_and_in_a_batch(workers: Bench) -> None:
    copy = await workers.load(
        """
        import time

        class Model:
            def infer(self, inputs):
                x = inputs["x"]
                if x[0, 0] < 0:
                    time.sleep(0.2)
                assert x.flags.writeable
                x += 1
                return {"y": x}
        """,
        "max_batch_size: 8",
    )
    queue = batcher(copy)

    async def one(value: float) -> tuple[float, int]:
        given = x(value)
        given["x"].flags.writeable = False
        ran = await queue.run(given, Request(), 1, deadline_s=None, queue_timeout_s=None)
        assert given["x"][0, 0] == value
        return float(ran.outputs["y"][0, 0]), ran.rows

    assert await one(1) == (2.0, 1)
    first = asyncio.create_task(one(-5))
    await asyncio.sleep(0)
    together = await asyncio.gather(*[one(value) for value in range(4)])
    assert await first == (-4.0, 1)
    assert together == [(1.0, 4), (2.0, 4), (3.0, 4), (4.0, 4)]
    large = np.ones((100_000, 1), np.float32)
    large.flags.writeable = False
    assert float((await run(copy, {"x": large})).sum()) == 200_000
    assert float(large.sum()) == 100_000


async def test_a_model_may_await(workers: Bench) -> None:
    copy = await workers.load(
        """
        import asyncio, threading

        class Model:
            async def load(self, context):
                self.thread = threading.get_ident()
                self.loop = asyncio.get_running_loop()
                self.lock = asyncio.Lock()

            async def infer(self, inputs):
                assert (self.thread, self.loop) == (threading.get_ident(), asyncio.get_running_loop())
                async with self.lock:
                    await asyncio.sleep(0)
                if inputs["x"][0, 0] == 13:
                    raise SystemExit(3)
                if inputs["x"][0, 0] == 14:
                    raise KeyboardInterrupt
                return {"y": inputs["x"] * 3}

            async def close(self):
                await asyncio.sleep(0)
                raise OSError("the disk is full")
        """
    )
    assert await number(copy, 2) == 6.0
    for value, name in ((13, "SystemExit"), (14, "KeyboardInterrupt")):
        with pytest.raises(ModelFailed, match=f"model 'm' raised {name}"):
            await number(copy, value)
        assert await number(copy, 2) == 6.0
    assert await copy.shut(60) == "OSError: the disk is full"
    assert workers.deaths == []


GENERATOR = """
class Model:
    def infer(self, inputs):
        count = int(inputs["x"][0, 0])
        try:
            for at in range(count):
                yield {"y": inputs["x"] * 0 + at}
            if count == 7:
                raise SystemExit("enough")
        finally:
            print(f"left after {count}")
"""
ASYNC_GENERATOR = GENERATOR.replace("def infer", "async def infer")
DECOUPLED = "decoupled: true\n"


async def responses(copy: object, value: float, most: int = 1000) -> list[float]:
    found: list[float] = []
    async with aclosing(copy.responses(x(value), Request())) as made:  # type: ignore[attr-defined] # a WorkerCopy
        async for outputs in made:
            found.append(float(outputs["y"][0, 0]))
            if len(found) == most:
                break
    return found


@pytest.mark.parametrize(
    ("code", "yaml"),
    [
        (GENERATOR, ""),
        (GENERATOR, "streams: 1\n"),
        (ASYNC_GENERATOR, ""),
    ],
    ids=["threads", "one thread", "async"],
)
async def test_a_generator_answers_several_times(workers: Bench, code: str, yaml: str) -> None:
    copy = await workers.load(code, DECOUPLED + yaml)
    assert await responses(copy, 3) == [0.0, 1.0, 2.0]
    assert await responses(copy, 0) == []
    assert await asyncio.gather(*[responses(copy, value) for value in range(20, 40)]) == [
        [float(at) for at in range(value)] for value in range(20, 40)
    ]
    with pytest.raises(ModelFailed, match="model 'm' raised SystemExit: enough"):
        await responses(copy, 7)
    assert await responses(copy, 1_000_000, most=5) == [0.0, 1.0, 2.0, 3.0, 4.0]
    await until(lambda: not copy._workers[0].runs, "the stream that nobody reads has ended")
    assert await responses(copy, 3) == [0.0, 1.0, 2.0]
    assert workers.deaths == []


@pytest.mark.parametrize("yaml", ["", "streams: 1\n"], ids=["threads", "one thread"])
async def test_streams_that_end_and_are_left_at_the_same_moment_end_no_worker(workers: Bench, yaml: str) -> None:
    """A credit or a cancellation may arrive when the worker has just sent the last response."""
    copy = await workers.load(GENERATOR, DECOUPLED + yaml)
    pids = copy.pids()
    for _ in range(10):
        found = await asyncio.gather(*[responses(copy, 4, most=1 + at % 4) for at in range(64)])
        assert [len(each) for each in found] == [1 + at % 4 for at in range(64)]
    assert copy.pids() == pids
    assert workers.deaths == []
    assert await responses(copy, 3) == [0.0, 1.0, 2.0]


async def test_with_one_stream_a_generator_runs_on_the_thread_that_loaded(workers: Bench) -> None:
    copy = await workers.load(
        """
        import threading

        class Model:
            def load(self, context):
                self.thread = threading.get_ident()

            def infer(self, inputs):
                yield {"y": inputs["x"] * 0 + (self.thread == threading.get_ident())}
        """,
        DECOUPLED + "streams: 1\n",
    )
    assert await responses(copy, 0) == [1.0]


async def test_a_generator_that_gives_nothing_where_a_response_was_meant_says_so(workers: Bench) -> None:
    copy = await workers.load(
        """
        class Model:
            def infer(self, inputs):
                yield {"y": inputs["x"]}
                yield None
                yield {"y": inputs["x"]}
        """,
        DECOUPLED,
    )
    with pytest.raises(ModelFailed, match="must return a dict of arrays by output name, got NoneType"):
        await responses(copy, 0)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with numpy and nothing else, as an environment of a model's own may be."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True, timeout=100)
    (packages,) = (folder / "env" / "lib").glob("python3*/site-packages")
    installed = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (installed / name).exists():
            (packages / name).symlink_to(installed / name)
    return folder / "env" / "bin" / "python"


async def test_a_model_runs_in_an_interpreter_of_its_own(workers: Bench, bare_python: Path) -> None:
    copy = await workers.load(
        """
        import sys
        import numpy as np
        from .near import SCALE

        class Model:
            def load(self, context):
                assert "msgspec" not in sys.modules
                try:
                    import msgspec
                except ImportError:
                    pass
                else:
                    raise RuntimeError("this is the node's interpreter")
                assert "" not in sys.path, sys.path
                self.prefix = sys.prefix

            def infer(self, inputs, request):
                assert request.parameters == {"a": "b", "n": -7, "f": 1.5, "yes": True}, request.parameters
                text = np.array([self.prefix.encode(), request.id.encode()], object)
                return {"y": inputs["x"] * SCALE, "t": text}
        """,
        f"""\
        python: {bare_python}
        inputs: [{{name: x, dtype: FP32, shape: [-1, -1]}}]
        outputs: [{{name: y, dtype: FP32, shape: [-1, -1]}}, {{name: t, dtype: BYTES, shape: [-1]}}]
        """,
        files={"near.py": "SCALE = 4\n"},
    )
    request = Request("id-1", {"a": "b", "n": -7, "f": 1.5, "yes": True})
    for size in (1, 1_000_000):
        given = np.ones((1, size), np.float32)
        found = await copy.run_alone({"x": given}, request)
        assert np.array_equal(found["y"], given * 4)
        assert found["t"].tolist() == [str(bare_python.parents[1]).encode(), b"id-1"]


@pytest.mark.parametrize("python", ["/no/such/python", "/etc/passwd"])
async def test_an_interpreter_that_is_not_there_is_a_sentence(workers: Bench, python: str) -> None:
    with pytest.raises(LoadFailed, match=rf"failed to load 'm', expected a Python interpreter at {python} \(python\)"):
        await workers.load(DOUBLE, f"python: {python}\n")


async def test_what_a_model_raises_is_text_for_its_caller(workers: Bench) -> None:
    copy = await workers.load(
        """
        import sys

        class Rude(Exception):
            def __str__(self):
                raise SystemExit(9)

        class Model:
            def infer(self, inputs):
                kind = int(inputs["x"][0, 0])
                if kind == 0:
                    raise ValueError("got a zero")
                if kind == 1:
                    sys.exit(4)
                if kind == 2:
                    raise KeyboardInterrupt
                if kind == 3:
                    raise GeneratorExit
                if kind == 4:
                    raise Rude
                if kind == 5:
                    raise ValueError("a lone surrogate: \\udc80")
                if kind == 6:
                    return {"y": object()}
                if kind == 7:
                    return 7
                if kind == 8:
                    raise ValueError("x" * 1_000_000)
                if kind == 9:
                    return self.deeper(inputs)
                return {"y": inputs["x"]}

            def deeper(self, inputs):
                return self.deeper(inputs)
        """
    )
    said = []
    for kind in range(10):
        with pytest.raises(ModelFailed) as caught:
            await number(copy, kind)
        said.append(caught.value.message.removeprefix("model 'm' ")[:80])
        assert await number(copy, 100) == 100.0
    assert said[:8] == [
        "raised ValueError: got a zero",
        "raised SystemExit: 4",
        "raised KeyboardInterrupt: ",
        "raised GeneratorExit: ",
        "raised Rude",
        "raised ValueError: a lone surrogate: \\udc80",
        "raised answered what cannot be carried: expected str or bytes elements, got obje",
        "raised TypeError: infer must return a dict of arrays by output name, got int",
    ]
    assert said[9].startswith("raised RecursionError")
    assert workers.deaths == []
    assert threading.active_count() < 50


async def test_shared_memory_goes_with_its_worker(workers: Bench) -> None:
    """Without the collector, which counts objects and not bytes."""

    def shared() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:mesh-tensors")

    copy = await workers.load(DOUBLE)
    before = shared()
    assert len(await run(copy, x(*range(100_000)))) == 100_000
    assert shared() > before
    gc.disable()
    try:
        assert await copy.shut(60) == ""
        assert shared() == before
    finally:
        gc.enable()
