"""The node's end of its template: starting workers, ending them, and hearing how they ended.

What the template is, `inside.template` says. A template that ends (nobody but the kernel or an operator ends it) takes
its workers with it, and the next worker that is wanted starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mesh.core.errors import LoadFailed
from mesh.telemetry import logs

log = logs.get(__name__)

START_S: Final = 60.0
"""How long a template may take to import numpy, and then to fork: on a machine that swaps it takes seconds."""

PACKET_BYTES: Final = 64 * 1024

LOST: Final = -1000
"""Said to be the exit code of workers whose template is gone: it takes them with it."""

Ended = Callable[[int], None]
"""Hears a worker's exit code; below 0 it is the signal that ended it."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A worker process that was started, with this node's ends of its channels."""

    pid: int
    shared_bytes: int
    """Resident memory that it had from the template at once."""
    line: socket.socket
    out: int
    err: int


class Template:
    """Starts its process when the first worker is wanted. `close` ends it and every worker."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready: asyncio.Future[None] | None = None
        self._serial = 0
        self._closed = False
        self._asked: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._ended: dict[int, Ended] = {}
        self._early: dict[int, int] = {}
        """Exit codes of workers that ended before anybody asked for them."""

    async def warm(self) -> None:
        """Return when it can fork. Raises `LoadFailed` when it cannot be started."""
        if self._ready is None:
            self._start()
        assert self._ready is not None
        try:
            async with asyncio.timeout(START_S):
                await asyncio.shield(self._ready)
        except (TimeoutError, OSError) as error:
            self._end()
            raise LoadFailed(f"no worker process could be started here: {error or 'it took too long'}") from error

    async def spawn(self, command: Sequence[str] | None) -> Spawned:
        """Start a worker: a fork of the template, or `command` with the number of its socket behind it.

        Raises `LoadFailed`. Cancelled, it leaves none behind.
        """
        await self.warm()
        assert self._socket is not None
        try:
            ours, theirs, (out, out_end), (err, err_end) = _channels()
        except OSError as error:
            raise LoadFailed(f"no worker process could be started: {error}") from error
        given = [theirs.fileno(), out_end, err_end]
        self._serial += 1
        number = self._serial
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self._socket, [json.dumps(["fork", number, command]).encode()], given)
            async with asyncio.timeout(START_S):
                pid, shared_bytes = await asyncio.shield(answer)
        except BaseException as error:
            answer.add_done_callback(self._unwanted)
            ours.close()
            os.close(out)
            os.close(err)
            if isinstance(error, OSError | TimeoutError):
                raise LoadFailed(f"no worker process could be started: {error or 'it took too long'}") from error
            raise
        finally:
            theirs.close()
            os.close(out_end)
            os.close(err_end)
        for each in (out, err):
            os.set_blocking(each, False)
        ours.setblocking(False)  # noqa: FBT003 - its only way
        return Spawned(pid, shared_bytes, ours, out, err)

    def watch(self, pid: int, ended: Ended) -> None:
        """Let `ended` hear the exit code of a worker, once, never from within this call."""
        if pid in self._early or self._socket is None:
            asyncio.get_running_loop().call_soon(ended, self._early.pop(pid, LOST))
        else:
            self._ended[pid] = ended

    def kill(self, pid: int) -> None:
        """End a worker and what it started. Nothing happens when it is gone."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(json.dumps(["kill", pid]).encode())

    def close(self) -> None:
        """End the template and every worker, for good."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        self._lost()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _start(self) -> None:
        if self._closed:
            raise LoadFailed("no worker process is started any more: this node is stopping")
        if self._process is not None:
            self._process.poll()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise LoadFailed(f"no worker process could be started here: {error}") from error
        try:
            # A session of its own: Ctrl-C at the node's terminal is the node's to answer.
            self._process = subprocess.Popen(  # noqa: S603 - this program's own interpreter and file
                [sys.executable, "-P", "-m", "mesh.node.workers.inside.template", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise LoadFailed(f"no worker process could be started here: {error}") from error
        finally:
            theirs.close()
        ours.setblocking(False)  # noqa: FBT003 - its only way
        self._socket = ours
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        loop.add_reader(ours, self._read)

    def _read(self) -> None:
        assert self._socket is not None
        while self._socket is not None:
            try:
                packet = self._socket.recv(PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                log.warning("the template of workers ended; it is started again with the next worker")
                self._lost()
                return
            self._take(json.loads(packet))

    def _take(self, message: list[Any]) -> None:
        kind = message[0]
        if kind == "ready" and self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
        elif kind == "exited":
            ended = self._ended.pop(message[1], None)
            if ended is None:
                self._early[message[1]] = message[2]
            else:
                ended(message[2])
        elif kind in {"forked", "refused"}:
            answer = self._asked.pop(message[1], None)
            if answer is not None and not answer.done():
                if kind == "forked":
                    # What had this number before is nobody's any more.
                    self._early.pop(message[2], None)
                    answer.set_result((message[2], message[3]))
                else:
                    answer.set_exception(OSError(message[2]))

    def _unwanted(self, answer: asyncio.Future[tuple[int, int]]) -> None:
        """End a worker that came when nobody wanted it any more."""
        if not answer.cancelled() and answer.exception() is None:
            self.kill(answer.result()[0])

    def _lost(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        gone = OSError("the template ended")
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(gone)
            self._ready.exception()
        self._ready = None
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(gone)
        ended, self._ended = self._ended, {}
        self._asked.clear()
        self._early.clear()
        for each in ended.values():
            each(LOST)

    def __repr__(self) -> str:
        """Show the process."""
        return f"<Template pid={self._process and self._process.pid} workers={len(self._ended)}>"


def _channels() -> tuple[socket.socket, socket.socket, tuple[int, int], tuple[int, int]]:
    """Return both ends of a worker's socket and of its two pipes. Raises OSError, and leaves nothing open then."""
    with contextlib.ExitStack() as opened:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        opened.callback(ours.close)
        opened.callback(theirs.close)
        out = os.pipe2(os.O_CLOEXEC)
        for each in out:
            opened.callback(os.close, each)
        err = os.pipe2(os.O_CLOEXEC)
        opened.pop_all()
    return ours, theirs, out, err
