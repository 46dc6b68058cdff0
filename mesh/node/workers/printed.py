"""What a model prints, as log lines with its name. A model that prints without end is slowed down, not the node."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Final

from mesh.core.types import ModelVersion
from mesh.telemetry import logs

log = logs.get(__name__)

READ_BYTES: Final = 16 * 1024
PIPE_BYTES: Final = 64 * 1024
"""What Linux keeps for a pipe."""
LINE_BYTES: Final = 4096
"""A longer line is cut: logs are read by people and by collectors with limits like this."""
LINES_PER_S: Final = 50
BURST: Final = 200
"""Lines at once: a traceback of a few hundred frames is worth reading whole."""


class Printed:
    """One of the two streams of a worker. Closes its descriptor when the worker is gone, or by `close`."""

    def __init__(self, fd: int, model: ModelVersion, stream: str) -> None:
        self._fd = fd
        self._model = model
        self._stream = stream
        self._rest = b""
        self._left = float(BURST)
        self._dropped = 0
        self._loop = asyncio.get_running_loop()
        self._at_s = self._loop.time()
        self._loop.add_reader(fd, self._read)

    def close(self) -> None:
        """Tell what is left, and close. Idempotent."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        self._loop.remove_reader(fd)
        with contextlib.suppress(OSError):
            # What it started may go on to print: a pipe's content, and no more.
            for _ in range(PIPE_BYTES // READ_BYTES):
                data = os.read(fd, READ_BYTES)
                if not data:
                    break
                self._take(data)
        os.close(fd)
        if self._rest:
            self._tell(self._rest)
        self._tell_dropped()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._take(data)
        if self._left < 1:
            # It waits for its next print until then.
            self._loop.remove_reader(self._fd)
            self._loop.call_later(1 / LINES_PER_S, self._again)

    def _again(self) -> None:
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._read)

    def _take(self, data: bytes) -> None:
        now_s = self._loop.time()
        self._left = min(BURST, self._left + (now_s - self._at_s) * LINES_PER_S)
        self._at_s = now_s
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            if self._left < 1:
                self._dropped += 1
            elif line.strip():
                self._left -= 1
                self._tell_dropped()
                self._tell(line)

    def _tell(self, line: bytes) -> None:
        text = line[:LINE_BYTES].decode(errors="backslashreplace").rstrip("\r")
        log.info("printed", model=self._model.name, version=self._model.version, stream=self._stream, line=text)

    def _tell_dropped(self) -> None:
        if self._dropped:
            model = self._model
            log.info("printed more", model=model.name, version=model.version, stream=self._stream, lines=self._dropped)
            self._dropped = 0

    def __repr__(self) -> str:
        """Show whose it is."""
        return f"<Printed {self._model.name} {self._stream} dropped={self._dropped}>"
