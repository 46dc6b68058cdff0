"""The template: a small process that runs nothing but this loop and has numpy imported; workers are forked from it.

It takes requests on a socket, as JSON with descriptors, and says which of its children ended and how. It is the
subreaper of everything that models start, so that nothing of a model outlives its worker, and it ends with all its
children when the node's end of the socket closes, however the node went.

| the node sends | the template answers |
|---|---|
| fork, n, command (another interpreter's, or null); with three descriptors | forked, n, pid, bytes; refused, n, text |
| kill, pid | (exited) |
| | ready, once; exited, pid, code (below 0: minus the signal) |
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np  # noqa: F401 - what workers find imported

from . import main

_PR_SET_CHILD_SUBREAPER = 36
_PACKET_BYTES = 64 * 1024
_NODES_TO_ANSWER = (signal.SIGTERM, signal.SIGHUP)
"""A supervisor may send these to every process of a node, which still has calls to answer. The node ends it."""
_SWEEP_S = 1.0
"""How often processes that models left behind are looked for."""


class _Template:
    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._workers: set[int] = set()

    def serve(self) -> None:
        """Return when the node is gone."""
        woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._say(["ready", os.getpid()])
        line = self._socket.fileno()
        while True:
            found, _, _ = select.select([line, woken], [], [], _SWEEP_S)
            if woken in found:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 4096)
            if line in found and not self._take():
                return
            self._reap()

    def _take(self) -> bool:
        try:
            packet, ancillary, _, _ = self._socket.recvmsg(_PACKET_BYTES, socket.CMSG_SPACE(3 * 4))
        except ConnectionError:
            return False  # It ended before it had read everything.
        if not packet:
            return False
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        try:
            asked = json.loads(packet)
            if asked[0] == "fork":
                self._fork(asked[1], asked[2], list(fds))
            elif asked[0] == "kill" and asked[1] in self._workers:
                self._kill(asked[1])
        finally:
            for each in fds:
                os.close(each)
        return True

    def _fork(self, number: int, command: list[str] | None, fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._say(["refused", number, f"no process could be started: {error.strerror}"])
            return
        if pid == 0:
            self._be_worker(command, fds)
        self._workers.add(pid)
        self._say(["forked", number, pid, 0 if command else _held_bytes()])

    def _be_worker(self, command: list[str] | None, fds: list[int]) -> NoReturn:
        try:
            line, out, err = fds
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for each in _NODES_TO_ANSWER:
                signal.signal(each, signal.SIG_DFL)
            self._socket.close()
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.close(out)
            os.close(err)
            os.setsid()
            if command is None:
                gc.enable()
                main.run(line)
            os.set_inheritable(line, True)  # noqa: FBT003 - its only argument
            main.end_with_parent()
            # The node's own interpreter may have been told where its modules are; another one has its own.
            theirs = {name: each for name, each in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
            os.execve(command[0], [*command, str(line)], theirs)  # noqa: S606 - the interpreter that model.yaml names
        except BaseException as error:  # noqa: BLE001 - the end of the process
            os.write(2, f"could not start: {error}\n".encode(errors="replace"))
        finally:
            os._exit(127)

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Say who ended, and end what they left behind."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                if pid in self._workers:
                    self._workers.discard(pid)
                    self._say(["exited", pid, os.waitstatus_to_exitcode(status)])
        for pid in _children() - self._workers:
            self._kill(pid)

    def end_all(self) -> None:
        """End every child and what they left, until there is none."""
        with contextlib.suppress(ChildProcessError):
            while True:
                for pid in _children() | self._workers:
                    self._kill(pid)
                self._workers.discard(os.waitpid(-1, 0)[0])

    def _say(self, message: list[Any]) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps(message).encode())


def _children() -> set[int]:
    try:
        return {int(each) for each in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    except OSError:
        return set()


def _held_bytes() -> int:
    """Return this process's anonymous memory: what a fork of it has at once."""
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")) * 1024
    except (OSError, IndexError, ValueError, StopIteration):
        return 0


def _main() -> None:
    for each in (signal.SIGINT, *_NODES_TO_ANSWER):
        signal.signal(each, signal.SIG_IGN)
    main.set_process_option(_PR_SET_CHILD_SUBREAPER, 1)
    gc.collect()
    gc.disable()
    gc.freeze()
    template = _Template(int(sys.argv[1]))
    try:
        template.serve()
    finally:
        template.end_all()


if __name__ == "__main__":
    _main()
