"""How workers end, by themselves and otherwise: who is told what, what comes in their place, and what is left."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.core.errors import LoadFailed, ModelFailed, NotReady, WorkerDied
from mesh.node.runtimes.base import Request
from mesh.node.workers import copy as copies
from tests.fixtures.workers import (
    DEADLINE_S,
    Bench,
    alive,
    batcher,
    descendants,
    kill,
    number,
    run,
    until,
    x,
)

CULPRIT = """
import ctypes, os, signal, sys, time

class Model:
    def infer(self, inputs):
        kind = int(inputs["x"].max())
        if kind == 1:
            ctypes.string_at(0)
        if kind == 2:
            os._exit(3)
        if kind == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == 4:
            os.abort()
        if kind == 5:
            time.sleep(1000)
        return {"y": inputs["x"]}
"""


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (1, "was ended by SIGSEGV"),
        (2, "ended itself with exit code 3"),
        (3, "was ended by SIGKILL"),
        (4, "was ended by SIGABRT"),
    ],
)
async def test_a_run_that_ends_its_worker_fails_alone_and_another_comes(workers: Bench, kind: int, why: str) -> None:
    copy = await workers.load(CULPRIT)
    (before,) = copy.pids()
    with pytest.raises(WorkerDied, match=f"the worker process of model 'm' {why}"):
        await number(copy, kind)
    await until(copy.pids, "another worker is there")
    assert before not in copy.pids()
    assert not alive(before)
    assert await number(copy, 0) == 0.0
    assert workers.deaths == [why]


async def test_the_other_instances_go_on_and_the_queue_waits_for_the_one_that_comes(workers: Bench) -> None:
    copy = await workers.load(CULPRIT, "instances: 2")
    queue = batcher(copy)

    async def call(kind: float) -> Any:
        return await queue.run(x(kind), Request(), 1, deadline_s=None, queue_timeout_s=None)

    for _ in range(3):
        found = await asyncio.gather(*[call(2 if at == 3 else 0) for at in range(20)], return_exceptions=True)
        assert [at for at, each in enumerate(found) if isinstance(each, Exception)] == [3]
        assert isinstance(found[3], WorkerDied)
    await until(lambda: copy.parallel == 2, "both instances are there")
    assert queue.running == 0
    assert len(workers.deaths) == 3


async def test_the_callers_of_a_batch_that_ended_its_worker_are_not_run_again(workers: Bench) -> None:
    copy = await workers.load(CULPRIT.replace("kind == 5", "kind == 6"), "max_batch_size: 8")
    queue = batcher(copy)
    found = await asyncio.gather(
        *[queue.run(x(at), Request(), 1, deadline_s=None, queue_timeout_s=None) for at in (0, 2, 0)],
        return_exceptions=True,
    )
    assert [type(each) for each in found] == [WorkerDied] * 3
    await until(copy.pids, "another worker is there")
    assert queue.running == 0
    assert len(workers.deaths) == 1


async def test_while_a_model_is_paused_callers_are_told_at_once(workers: Bench) -> None:
    workers.pause_s = 1000.0
    copy = await workers.load(CULPRIT, "max_batch_size: 1")
    queue = batcher(copy)

    async def call(kind: float) -> Any:
        return await queue.run(x(kind), Request(), 1, deadline_s=None, queue_timeout_s=None)

    found = await asyncio.gather(call(2), call(0), return_exceptions=True)
    assert [type(each) for each in found] == [WorkerDied, NotReady]
    with pytest.raises(
        NotReady, match="model 'm' is started again: its worker process ended itself with exit"
    ) as error:
        await call(0)
    assert error.value.retry_after_s is not None
    assert error.value.retry_after_s > 900
    assert await copy.shut(60) == ""


async def test_a_pause_ends_when_the_model_is_released(workers: Bench) -> None:
    workers.pause_s = 1000.0
    copy = await workers.load(CULPRIT, "max_batch_size: 1")
    with pytest.raises(WorkerDied):
        await number(copy, 2)
    workers.pause_s = 0.0
    await until(copy.pids, "another worker is there")
    assert await number(copy, 0) == 0


@pytest.mark.parametrize(
    ("body", "why", "deaths"),
    [
        ("sys.exit(4)", "its load raised SystemExit: 4", 0),
        ("raise KeyboardInterrupt", "its load raised KeyboardInterrupt: ", 0),
        ("os._exit(4)", "its worker process ended itself with exit code 4", 1),
        ("ctypes.string_at(0)", "its worker process was ended by SIGSEGV", 1),
        ("raise ValueError('\\udc80')", r"its load raised ValueError: \udc80", 0),
    ],
)
async def test_a_load_that_ends_is_refused_and_leaves_nothing(workers: Bench, body: str, why: str, deaths: int) -> None:
    code = f"""
    import ctypes, os, sys

    class Model:
        def load(self, context):
            {body}

        def infer(self, inputs):
            return inputs
    """
    with pytest.raises(LoadFailed) as caught:
        await workers.load(code)
    assert caught.value.message == f"failed to load 'm', {why}"
    assert len(workers.deaths) == deaths
    await until(lambda: not workers.family, "no process is left")


NEVER = """
import os, signal, time

class Model:
    def load(self, context):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            time.sleep(1000)

    def infer(self, inputs):
        return {"y": inputs["x"]}
"""


async def test_a_load_that_never_ends_is_ended(workers: Bench) -> None:
    with pytest.raises(LoadFailed, match=r"its load did not end within 0\.3 s \(max_load_s\)"):
        await workers.load(NEVER, "max_load_s: 0.3")
    await until(lambda: not workers.family, "no process is left")
    assert len(workers.deaths) == 1


async def test_a_load_that_is_cancelled_leaves_no_process(workers: Bench) -> None:
    load = asyncio.create_task(workers.load(NEVER))
    await until(lambda: workers.runtime._template._process and workers.family, "a worker is there")
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    await until(lambda: not workers.family, "no process is left")
    assert workers.deaths == []


async def test_a_load_that_is_cancelled_while_some_instances_are_there_leaves_no_process(workers: Bench) -> None:
    first = workers.repository / "first"
    code = f"""
    import os, time

    class Model:
        def load(self, context):
            try:
                os.mkdir({str(first)!r})
            except FileExistsError:
                time.sleep(1000)

        def infer(self, inputs):
            return inputs
    """
    load = asyncio.create_task(workers.load(code, "instances: 2"))
    await until(lambda: first.exists() and len(workers.runtime._loading) == 1, "one instance is there, one loads")
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    await until(lambda: not workers.family, "no process is left")


async def test_where_one_instance_cannot_be_loaded_none_is_left(workers: Bench) -> None:
    first = workers.repository / "first"
    code = f"""
    import os

    class Model:
        def load(self, context):
            os.mkdir({str(first)!r})

        def infer(self, inputs):
            return inputs
    """
    with pytest.raises(LoadFailed, match="its load raised FileExistsError"):
        await workers.load(code, "instances: 3")
    await until(lambda: not workers.family, "no process is left")


async def test_a_run_that_takes_too_long_ends_its_worker_and_another_answers(workers: Bench) -> None:
    copy = await workers.load(CULPRIT, "max_run_s: 5")
    hung = asyncio.create_task(number(copy, 5))
    await until(lambda: copy._workers[0].runs, "it is at work")
    copy.look(time.monotonic())
    assert not hung.done()
    copy.look(time.monotonic() + 6)
    with pytest.raises(WorkerDied, match=r"was ended: a run did not end within 5 s \(max_run_s\)"):
        await hung
    await until(copy.pids, "another worker is there")
    assert await number(copy, 0) == 0.0
    assert workers.deaths == ["was ended: a run did not end within 5 s (max_run_s)"]


async def test_a_run_that_nobody_waits_for_any_more_ends_its_worker(
    workers: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "ALONE_S", 0.2)
    copy = await workers.load(CULPRIT)
    queue = batcher(copy)
    hung = asyncio.create_task(queue.run(x(5), Request(), 1, deadline_s=None, queue_timeout_s=None))
    await until(lambda: copy._workers[0].runs, "it is at work")
    copy.look(time.monotonic())
    copy.look(time.monotonic() + 10)
    (pid,) = copy.pids()
    assert alive(pid)
    hung.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hung

    def replaced() -> bool:
        copy.look(time.monotonic())
        return bool(copy.pids()) and pid not in copy.pids()

    await until(replaced, "another worker is there")
    assert await number(copy, 0) == 0.0
    assert workers.deaths == ["was ended: a run went on for 0.2 s after everybody who waited for it had left"]


async def test_a_copy_that_is_shut_lets_its_model_close_and_no_longer(workers: Bench) -> None:
    copy = await workers.load(CULPRIT)
    hung = asyncio.create_task(number(copy, 5))
    await until(lambda: copy._workers[0].runs, "it is at work")
    assert await copy.shut(0.2) == "it did not end within 0.2 s"
    with pytest.raises(WorkerDied):
        await hung
    await until(lambda: not workers.family, "no process is left")
    assert workers.deaths == []


LEAVES = {
    "a child": "os.fork() or forever()",
    "a grandchild in a session of its own": "os.fork() or (os.setsid(), os.fork(), forever())",
    "a daemon": "os.fork() or (os.setsid(), os.fork() and os._exit(0), forever())",
    "a program": "__import__('subprocess').Popen(['sleep', '1000'], start_new_session=True)",
    "what closes every file": "os.fork() or (os.closerange(0, 256), forever())",
}


@pytest.mark.parametrize("what", list(LEAVES))
@pytest.mark.parametrize("end", ["shut", "dies"])
async def test_nothing_that_a_model_started_outlives_it(workers: Bench, what: str, end: str) -> None:
    """It may hold the worker's socket and pipes open, which keeps nobody waiting."""
    copy = await workers.load(
        f"""
        import os, signal, time

        def forever():
            for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(each, signal.SIG_IGN)
            while True:
                time.sleep(1000)

        class Model:
            def load(self, context):
                {LEAVES[what]}

            def infer(self, inputs):
                if inputs["x"][0, 0]:
                    os._exit(1)
                return {{"y": inputs["x"]}}
        """
    )
    assert await number(copy, 0) == 0.0
    await until(lambda: len(workers.family) >= 2, "the model has started something")
    started = workers.family
    if end == "shut":
        assert await copy.shut(DEADLINE_S) == ""
    else:
        with pytest.raises(WorkerDied):
            await number(copy, 1)
        await until(copy.pids, "another worker is there")
        await copy.shut(DEADLINE_S)
    await until(lambda: not any(alive(each) for each in started), "they are gone")
    await until(lambda: not workers.family, "no process is left")


async def test_what_a_dead_worker_leaves_open_does_not_hold_the_loop(workers: Bench) -> None:
    """Its children keep its socket and its pipes, and write to them without end, until they are ended."""
    copy = await workers.load(
        """
        import os, time

        class Model:
            def infer(self, inputs):
                for _ in range(3):
                    if not os.fork():
                        while True:
                            os.write(1, b"still here\\n" * 1000)
                os.kill(os.getpid(), 9)
        """
    )
    (worker,) = copy._workers
    template = workers.template
    os.kill(template, signal.SIGSTOP)
    try:
        call = asyncio.create_task(number(copy, 0))
        await until(lambda: len(descendants(template) - {worker.pid}) == 3, "its children are there")
        # The template tells of the end, and ends the children only then: as if it told and was kept from the rest.
        worker._exited(-9)
        with pytest.raises(WorkerDied):
            await call
    finally:
        os.kill(template, signal.SIGCONT)
    await copy.shut(DEADLINE_S)
    await until(lambda: not workers.family, "no process is left")


async def test_a_template_that_is_killed_takes_its_workers_and_nobody_is_to_blame(workers: Bench) -> None:
    copy = await workers.load(CULPRIT, "instances: 2")
    hung = asyncio.create_task(number(copy, 5))
    await until(lambda: any(each.runs for each in copy._workers), "it is at work")
    before, template = copy.pids(), workers.template
    kill(template)
    with pytest.raises(WorkerDied, match="ended with the process that workers are started by"):
        await hung
    await until(lambda: copy.parallel == 2, "both instances are there again")
    assert workers.template != template
    assert await number(copy, 0) == 0.0
    await until(lambda: not any(alive(each) for each in before), "the old ones are gone")
    assert workers.deaths == []


def ignored(pid: int) -> int:
    """Return the signals that a process ignores, one bit each."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:")), 16)


def opened(pid: int | str) -> int:
    """Return how many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def mapped() -> int:
    """Return how many regions of workers are mapped here."""
    return Path("/proc/self/maps").read_text().count("mesh-tensors")


async def test_a_template_is_ended_by_nothing_but_its_node(workers: Bench) -> None:
    """A supervisor that stops a node may signal all its processes; the node still has calls to answer."""
    copy = await workers.load(CULPRIT)
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(workers.template, sign)
    assert await number(copy, 0) == 0.0
    other = await workers.load(CULPRIT, name="other")
    assert await number(other, 0) == 0.0
    (pid,) = other.pids()
    assert not ignored(pid) & 1 << (signal.SIGTERM - 1), "a model's own children are ended as usual"


async def test_an_idle_worker_that_is_killed_from_outside_is_nobodys_fault(workers: Bench) -> None:
    copy = await workers.load(CULPRIT)
    (pid,) = copy.pids()
    kill(pid)
    await until(lambda: copy.pids() and pid not in copy.pids(), "another worker is there")
    assert await number(copy, 0) == 0.0
    assert workers.deaths == []


async def test_nothing_is_left_open_after_loads_runs_and_ends(workers: Bench) -> None:
    async def round_of_all() -> None:
        copy = await workers.load(CULPRIT, "max_load_s: 600")
        await run(copy, {"x": np.zeros((100_000, 1), np.float32)})
        with pytest.raises(WorkerDied):
            await number(copy, 2)
        await until(copy.pids, "another worker is there")
        await copy.shut(DEADLINE_S)
        workers.copies.remove(copy)
        with pytest.raises(LoadFailed):
            await workers.load("raise ValueError", name="bad")

    def held() -> int:
        gc.collect()
        return opened("self")

    await round_of_all()
    before, maps = held(), mapped()
    for _ in range(5):
        await round_of_all()
    await until(lambda: held() <= before, "every descriptor is closed")
    assert mapped() <= maps
    assert opened(workers.template) < 10


async def test_where_no_file_can_be_opened_large_requests_fail_and_the_copy_goes_on(workers: Bench) -> None:
    copy = await workers.load(CULPRIT)
    queue = batcher(copy)
    large = {"x": np.zeros((1_000_000, 1), np.float32)}
    workers.write(CULPRIT, name="other")
    spec = workers.spec("other")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(ModelFailed, match=r"cannot be given to its worker: .*Too many open files"):
            await queue.run(large, Request(), 1, deadline_s=None, queue_timeout_s=None)
        assert queue.running == 0
        ran = await queue.run(x(0), Request(), 1, deadline_s=None, queue_timeout_s=None)
        assert ran.outputs["y"].tolist() == [[0.0]]
        with pytest.raises(LoadFailed, match=r"no worker process could be started: .*Too many open files"):
            await workers.runtime.load(spec)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    ran = await queue.run(large, Request(), 1, deadline_s=None, queue_timeout_s=None)
    assert ran.outputs["y"].shape == (1_000_000, 1)
    other = await workers.load(CULPRIT, name="other")
    assert await number(other, 0) == 0.0


async def test_where_no_worker_can_be_started_in_its_place_the_copy_is_lost_and_nobody_waits(workers: Bench) -> None:
    copy = await workers.load(CULPRIT, "instances: 2")
    lost: list[str] = []
    copy.on_lost = lost.append
    (workers.repository / "m" / "1" / "model.py").write_text("raise ValueError('changed')")
    queue = batcher(copy)
    found = await asyncio.gather(
        *[queue.run(x(at), Request(), 1, deadline_s=None, queue_timeout_s=None) for at in (2, 2, 0)],
        return_exceptions=True,
    )
    assert [type(each) for each in found] == [WorkerDied, WorkerDied, NotReady]
    assert lost == [str(found[2])] == ["failed to load 'm', importing model.py raised ValueError: changed"]
    (workers.repository / "m" / "1" / "model.py").write_text(textwrap.dedent(CULPRIT))
    await until(lambda: not copy._restarts, "nothing is started any more")
    assert not copy.pids()
    await until(lambda: not workers.family, "no process is left")


async def test_an_instance_that_could_not_be_started_again_is_tried_until_it_can(
    workers: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "LONGEST_AGAIN_S", 0.05)
    copy = await workers.load(CULPRIT, "instances: 2")
    code = workers.repository / "m" / "1" / "model.py"
    code.write_text("raise ValueError('changed')")
    with pytest.raises(WorkerDied):
        await number(copy, 2)
    before = len(workers.deaths)
    assert await number(copy, 0) == 0.0
    code.write_text(textwrap.dedent(CULPRIT))
    await until(lambda: copy.parallel == 2, "both instances are there again")
    assert len(workers.deaths) == before


async def test_memory_of_a_worker_and_its_children_is_counted(workers: Bench) -> None:
    copy = await workers.load(
        """
        import os, time
        import numpy as np

        class Model:
            def infer(self, inputs):
                size = int(inputs["x"][0, 0]) << 20
                if inputs["x"].shape[0] > 1:
                    if not os.fork():
                        held = np.ones(size, np.uint8)
                        time.sleep(1000)
                else:
                    self.held = np.ones(size, np.uint8)
                return {"y": inputs["x"]}
        """
    )
    before = copy.bytes_held()
    assert before < 64 << 20
    await run(copy, x(100))
    own = copy.bytes_held()
    assert 90 << 20 < own - before < 140 << 20
    await run(copy, x(100, 0))
    await until(lambda: copy.bytes_held() - own > 90 << 20, "its child is counted")
    (pid,) = copy.pids()
    copy.end("it took too much")
    await until(lambda: copy.pids() - {pid}, "another worker is there")
    assert copy.bytes_held() < 64 << 20
    assert workers.deaths == ["was ended: it took too much"]


async def test_a_load_that_takes_more_than_there_is_is_ended(workers: Bench) -> None:
    code = """
    import time
    import numpy as np

    class Model:
        def load(self, context):
            self.held = np.ones(300 << 20, np.uint8)
            time.sleep(1000)

        def infer(self, inputs):
            return inputs
    """
    for yaml, capacity, limit in (("", 100 << 20, 100 << 20), (f"memory_limit_bytes: {50 << 20}", 1 << 40, 50 << 20)):
        load = asyncio.create_task(workers.load(code, yaml))

        def ended(load: asyncio.Task[Any] = load, capacity: int = capacity) -> bool:
            workers.runtime.look_at_loads(capacity)
            return load.done()

        await until(ended, "it is ended")
        with pytest.raises(LoadFailed, match=rf"was ended: it took \d+ bytes in its load, and may take {limit}$"):
            await load
    await until(lambda: not workers.family, "no process is left")


async def test_streams_of_a_worker_that_ends_are_told(workers: Bench) -> None:
    copy = await workers.load(
        """
        import os

        class Model:
            def infer(self, inputs):
                for at in range(3):
                    yield {"y": inputs["x"] * 0 + at}
                if inputs["x"][0, 0]:
                    os._exit(3)
        """,
        "decoupled: true",
    )

    async def responses(value: float) -> list[float]:
        async with aclosing(copy.responses(x(value), Request())) as made:
            return [float(each["y"][0, 0]) async for each in made]

    with pytest.raises(WorkerDied, match="ended itself with exit code 3"):
        await responses(1)
    await until(copy.pids, "another worker is there")
    assert await responses(0) == [0.0, 1.0, 2.0]


ROGUE = """
import gc, os, socket, time

def line():
    from mesh.node.workers.inside.line import Line
    (found,) = [each for each in gc.get_objects() if isinstance(each, Line)]
    return found

class Model:
    def infer(self, inputs):
        kind = int(inputs["x"][0, 0])
        number = 1
        if kind == 1:
            line().send(["response", number, {{}}])
        if kind == 2:
            line().send(["turned", number, 1, []])
        if kind == 3:
            line().send(["ready", number, {{}}])
        if kind == 4:
            line().send(["done", number, "soon", {{}}])
        if kind == 5:
            line().send(["no such thing", number])
        if kind == 6:
            line()._socket.send(b"nonsense")
        if kind == 7:
            there, here = os.pipe()
            socket.send_fds(line()._socket, [b"nonsense"], [there, here])
        if kind == 8:
            line().send(["done", number, 1, {{"y": 7}}])
        if kind == 9:
            line()._socket.shutdown(socket.SHUT_RDWR)
        if kind:
            time.sleep(1000)
        {answer}
"""


@pytest.mark.parametrize("kind", range(1, 10))
async def test_a_model_that_speaks_for_its_worker_ends_it_and_harms_nobody_else(workers: Bench, kind: int) -> None:
    """It may reach into its process; whatever the node gets to read, every caller is told."""
    copy = await workers.load(ROGUE.format(answer='return {"y": inputs["x"]}'))
    (pid,) = copy.pids()
    before = opened("self")
    with pytest.raises(WorkerDied):
        await number(copy, kind)
    await until(copy.pids, "another worker is there")
    assert pid not in copy.pids()
    assert await number(copy, 0) == 0.0
    assert opened("self") <= before


async def test_a_stream_that_sends_more_than_it_may_is_ended(workers: Bench) -> None:
    code = ROGUE.format(answer='yield {"y": inputs["x"]}').replace(
        "number = 1\n",
        "number = 1\n        for _ in range(100):\n            line().send(['response', 1, {'y': inputs['x']}])\n",
    )
    copy = await workers.load(code, "decoupled: true")
    (worker,) = copy._workers
    made = copy.responses(x(0), Request())
    found = [await anext(made)]
    await until(lambda: worker.over, "it is ended")
    with pytest.raises(WorkerDied, match="was ended: it sent what is no answer"):
        found += [each async for each in made]
    assert len(found) == 1


async def test_the_memory_of_a_worker_that_ended_is_given_back_without_the_collector(workers: Bench) -> None:
    copy = await workers.load(CULPRIT)
    gc.collect()
    gc.disable()
    try:
        before = mapped()
        for _ in range(3):
            await run(copy, {"x": np.zeros((1_000_000, 1), np.float32)})
            assert mapped() > before
            with pytest.raises(WorkerDied):
                await number(copy, 2)
            await until(copy.pids, "another worker is there")
            assert mapped() == before
    finally:
        gc.enable()


NODE = """
import asyncio, json, sys
from pathlib import Path

sys.path.insert(0, {root!r})
from tests.fixtures.workers import Bench, until, x
from mesh.node.runtimes.base import Request

async def main():
    bench = Bench(Path({folder!r}))
    copy = await bench.load({code!r}, "instances: 2")
    await copy.run_alone(x(0), Request())
    await until(lambda: len(bench.family) == 6, "everything is there")
    print(json.dumps([bench.template, *bench.family]), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_nothing_is_left_of_a_node_that_is_killed(tmp_path: Path, sign: signal.Signals) -> None:
    code = """
    import os, signal, time

    class Model:
        def load(self, context):
            for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(each, signal.SIG_IGN)
            if not os.fork():
                os.setsid()
                if not os.fork():
                    time.sleep(1000)
                time.sleep(1000)

        def infer(self, inputs):
            return {"y": inputs["x"]}
    """
    root = str(Path(__file__).parents[3])
    program = NODE.format(root=root, folder=str(tmp_path), code=code)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        pids = json.loads(node.stdout.readline())
        node.send_signal(sign)
        node.wait(DEADLINE_S)
    end_s = time.monotonic() + DEADLINE_S
    while any(alive(each) for each in pids):
        assert time.monotonic() < end_s, [each for each in pids if alive(each)]
        time.sleep(0.05)


def test_a_runtime_can_be_closed_in_the_middle_of_everything(tmp_path: Path) -> None:
    async def main() -> set[int]:
        made = Bench(tmp_path)
        copy = await made.load(CULPRIT)
        call = asyncio.create_task(number(copy, 5))
        load = asyncio.create_task(made.load(NEVER, name="never"))
        await until(lambda: len(made.family) == 2, "both are at work")
        family = made.family | {made.template}
        made.runtime.close()
        for each in (call, load):
            with suppress(WorkerDied, LoadFailed):
                await each
        await until(lambda: not copy._restarts, "nothing is started in their place")
        assert made.runtime._template._process is None
        return family

    family = asyncio.run(main())
    assert not any(alive(each) for each in family)
