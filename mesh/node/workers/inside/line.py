"""The worker's end of its socket to the node: messages, one at a time. Used by several threads."""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

from .port import PACKET_BYTES, Port

_ANCILLARY_BYTES = socket.CMSG_SPACE(array.array("i").itemsize)


class Line:
    """Reads and writes messages. Blocks."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.settimeout(None)
        self._port = Port()
        self._lock = threading.Lock()

    def receive(self) -> list[Any] | None:
        """Return the next message, None when the node is gone."""
        try:
            packet, ancillary, _, _ = self._socket.recvmsg(PACKET_BYTES, _ANCILLARY_BYTES)
        except ConnectionError:
            return None
        if not packet:
            return None
        with self._lock:
            return self._port.decode(packet, _descriptor(ancillary))

    def send(self, message: Sequence[Any]) -> None:
        """Send a message. Raises `BadValue` for what cannot be carried; ends the process when the node is gone."""
        with self._lock:
            packet, fd = self._port.encode(message)
        try:
            if fd >= 0:
                socket.send_fds(self._socket, [packet], [fd])
            else:
                self._socket.send(packet)
        except OSError:
            os._exit(0)
        finally:
            if fd >= 0:
                os.close(fd)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def __repr__(self) -> str:
        """Show the port."""
        return f"<Line {self._port!r}>"


def _descriptor(ancillary: Sequence[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found = array.array("i")
            found.frombytes(data[: found.itemsize])
            return found[0]
    return -1
