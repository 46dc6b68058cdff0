"""The node's end of a worker's socket, on the event loop: messages as they come, and those that wait to be sent."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from mesh.node.workers.inside.port import PACKET_BYTES, Port, PortError

HELD_ELEMENTS: Final = 10_000
"""Elements of an array of text that are taken apart on the loop: 2 ms of work."""

ROUNDS: Final = 16
"""Messages of one worker that are read before the loop looks at others."""

LAST_ROUNDS: Final = 64
"""Of those: a thousand messages, several times what Linux keeps for a socket."""

_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(array.array("i").itemsize)


class NodeLine:
    """Sends to a worker and tells what comes. `broken` hears once that no more comes, and why if it was nonsense."""

    def __init__(self, end: socket.socket, *, take: Callable[[list[Any]], None], broken: Callable[[str], None]) -> None:
        self._socket: socket.socket | None = end
        self._port = Port(HELD_ELEMENTS)
        self._take = take
        self._broken = broken
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end, self._read)

    def send(self, message: Sequence[Any]) -> None:
        """Send, or keep it until the worker reads. Raises `inside.values.BadValue` for what cannot be carried."""
        if self._socket is None:
            return
        packet = self._port.encode(message)
        if self._waiting or not self._sent(*packet):
            if not self._waiting:
                self._loop.add_writer(self._socket, self._write)
            self._waiting.append(packet)

    def close(self) -> None:
        """Stop. `broken` hears nothing any more. Idempotent."""
        end, self._socket = self._socket, None
        if end is None:
            return
        self._loop.remove_reader(end)
        self._loop.remove_writer(end)
        end.close()
        # It refers to itself: its memory would stay until the collector comes by.
        self._port.close()
        for _, fd in self._waiting:
            if fd >= 0:
                os.close(fd)
        self._waiting.clear()
        self._port.close()

    def drain(self) -> None:
        """Read what a worker that is gone said before. What it started may hold its end open: none is waited for."""
        for _ in range(LAST_ROUNDS):
            if not self._read():
                return

    def _sent(self, packet: bytes, fd: int) -> bool:
        assert self._socket is not None
        try:
            if fd >= 0:
                socket.send_fds(self._socket, [packet], [fd])
            else:
                self._socket.send(packet)
        except BlockingIOError:
            return False
        except OSError:
            pass  # It is gone, which the reader hears.
        if fd >= 0:
            os.close(fd)
        return True

    def _write(self) -> None:
        assert self._socket is not None
        while self._waiting:
            if not self._sent(*self._waiting[0]):
                return
            self._waiting.popleft()
        self._loop.remove_writer(self._socket)

    def _read(self) -> bool:
        """Read; return whether there may be more."""
        for _ in range(ROUNDS):
            if self._socket is None:
                return False
            try:
                packet, ancillary, _, _ = self._socket.recvmsg(PACKET_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                return False
            except OSError:
                packet, ancillary = b"", []
            if not packet:
                self._end("")
                return False
            try:
                message = self._port.decode(packet, _descriptor(ancillary))
            except PortError as error:
                self._end(f"it sent what is no message ({error})")
                return False
            self._take(message)
        return True

    def _end(self, why: str) -> None:
        self.close()
        self._broken(why)

    def __repr__(self) -> str:
        """Show the port and what waits."""
        return f"<NodeLine waiting={len(self._waiting)} {self._port!r}>"


def _descriptor(ancillary: Sequence[tuple[int, int, bytes]]) -> int:
    """Return the first descriptor that came along, -1 without one. Any other is closed."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    for fd in found[1:]:
        os.close(fd)
    return found[0] if found else -1
