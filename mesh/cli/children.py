"""One child process of `mesh up`: started, watched, started again after it dies, stopped.

Which children there are and in which order they stop is left to `mesh.cli.supervisor`. A child gets a pipe as its
stdin and a session of its own: it ends when the supervisor is gone, and a terminal's Ctrl-C reaches the supervisor
alone, which then stops its children in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.core.errors import MeshError

FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 30.0
"""Wait before a restart: doubled from the first to the longest, as etcd and Kubernetes do for crash loops."""
HEALTHY_S: Final = 30.0
"""A child that lived this long starts again at the first wait."""
KILL_S: Final = 10.0
"""How long a killed process may take to be gone."""
LINE_BYTES: Final = 64 * 1024
"""A longer line of a child is passed on in pieces."""
TAIL_LINES: Final = 50
"""Lines of stderr kept to say why a child died."""


class ChildFailed(MeshError):
    """A child did not start."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What a child said when it was ready: its addresses as host:port, empty for one it does not have."""

    grpc: str = ""
    http: str = ""


Say = Callable[[str], None]
Argv = Callable[[Ready | None], Sequence[str]]
Ended = Callable[[int, int], None]
"""Hears the id and the exit code of a process, -N when signal N ended it."""
Probe = Callable[[], Coroutine[None, None, Ready]]


class Child:
    """A process that is kept running. `argv` is asked at each start with what the last start was ready with."""

    def __init__(
        self,
        name: str,
        argv: Argv,
        *,
        say: Say,
        relay: Say,
        probe: Probe | None = None,
        ended: Ended | None = None,
    ) -> None:
        """Keep what is needed to start it.

        `say` takes sentences about the child, `relay` its lines of stderr. Without a `probe` the child says itself
        when it is ready, by one JSON line on stdout. `ended` hears of each end that leads to another start.
        """
        self.name = name
        self.ready: Ready | None = None
        self.restarts = 0
        self._argv = argv
        self._say = say
        self._relay = relay
        self._probe = probe
        self._ended = ended
        self._process: Process | None = None
        self._pipes: tuple[asyncio.Task[None], ...] = ()
        self._said: asyncio.Future[Ready] | None = None
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._started_s = 0.0
        self._stopping = False

    @property
    def pid(self) -> int:
        """Its process id; 0 when it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    def __repr__(self) -> str:
        """Show where it stands."""
        return f"<Child {self.name} pid={self.pid} restarts={self.restarts}>"

    async def start(self) -> Ready:
        """Start it and wait until it is ready. Raises `ChildFailed` with its own sentence when it dies before.

        Cancelled, the process may run on: `stop` ends it.
        """
        self._tail.clear()
        self._said = asyncio.get_running_loop().create_future()
        self._started_s = time.monotonic()
        argv = self._argv(self.ready)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=PIPE, stdout=PIPE if self._probe is None else DEVNULL, stderr=PIPE, start_new_session=True
            )
        except OSError as error:
            raise ChildFailed(f"{self.name} cannot be started: {error}") from error
        self._process = process
        pipes = [asyncio.create_task(self._read_stderr(process), name=f"{self.name} stderr")]
        if process.stdout is not None:
            pipes.append(asyncio.create_task(self._read_stdout(process), name=f"{self.name} stdout"))
        self._pipes = tuple(pipes)
        self.ready = await self._first(process)
        return self.ready

    async def keep(self) -> None:
        """Start it again, with growing waits, whenever it ends. Runs until cancelled or `stop`."""
        wait_s = FIRST_WAIT_S
        while not self._stopping:
            if self._process is not None:
                await self._process.wait()
                await self._finish_pipes()
            if self._stopping:
                return
            if self._ended is not None and self._process is not None and self._process.returncode is not None:
                self._ended(self._process.pid, self._process.returncode)
            if time.monotonic() - self._started_s >= HEALTHY_S:
                wait_s = FIRST_WAIT_S
            self._say(f"{self.name} {self._end()}; starting it again in {wait_s:g} s")
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            self.restarts += 1
            try:
                await self.start()
            except ChildFailed:
                continue
            self._say(f"{self.name} runs again")

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, wait `grace_s` seconds, then kill it. Returns when it is gone. Idempotent."""
        self._stopping = True
        process = self._process
        if process is None:
            return
        for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILL_S)):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await process.wait()
        await self._finish_pipes()

    async def _first(self, process: Process) -> Ready:
        """Wait for readiness or the end of the process, whichever is first."""
        assert self._said is not None
        ready = self._said if self._probe is None else asyncio.create_task(self._probe(), name=f"{self.name} probe")
        ended = asyncio.create_task(process.wait(), name=f"{self.name} end")
        try:
            waiting: set[asyncio.Future[Ready] | asyncio.Task[int]] = {ready, ended}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                return ready.result()
            await self._finish_pipes()
            raise ChildFailed(f"{self.name} {self._end()}")
        finally:
            ended.cancel()
            ready.cancel()

    def _end(self) -> str:
        code = self._process.returncode if self._process is not None else None
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        last = next((line for line in reversed(self._tail) if line.strip()), "")
        said = next((line for line in reversed(self._tail) if line.startswith("error: ")), last)
        why = said.removeprefix("error: ")
        return f"ended with code {code}" + (f": {why}" if why and code else "")

    async def _finish_pipes(self) -> None:
        """Read what the ended process left in its pipes. A grandchild may hold them open: not for ever."""
        if self._pipes:
            await asyncio.wait(self._pipes, timeout=1.0)
            for task in self._pipes:
                task.cancel()

    async def _read_stderr(self, process: Process) -> None:
        assert process.stderr is not None
        async for line in lines(process.stderr):
            self._tail.append(line)
            if not line.startswith("error: "):  # that one becomes part of our own sentence
                self._relay(line)

    async def _read_stdout(self, process: Process) -> None:
        assert process.stdout is not None
        said = self._said
        async for line in lines(process.stdout):
            found = parse_ready(line)
            if found is not None and said is not None and not said.done():
                said.set_result(found)


def parse_ready(line: str) -> Ready | None:
    """Return the addresses in a ready line, None for any other line."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("ready") is not True:
        return None
    return Ready(grpc=str(record.get("grpc", "")), http=str(record.get("http", "")))


async def lines(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """Yield the lines of a pipe without their ends, over-long ones in pieces, until it ends."""
    rest = b""
    while chunk := await reader.read(LINE_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) >= LINE_BYTES:
            whole.append(rest)
            rest = b""
        for line in whole:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
