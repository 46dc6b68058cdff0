"""One connection to the HTTP port: bounded headers, and no peer that is waited for too long.

uvicorn takes any number of connections and headers, and waits for a first request or the rest of a body for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from mesh.core.files import http_connections
from mesh.gateway.exchange import LEAVING
from mesh.wire.files import limit

HEADER_S: Final = 10.0
"""How long a request's headers may take, the next bytes of its body, and a new connection to ask for something."""
ANSWER_S: Final = 60.0
"""How long a peer may not read while an answer waits for it."""
KEEP_ALIVE_S: Final = 75
"""How long a connection without a request is kept, where there is room (nginx's default)."""
MAX_HEADER_BYTES: Final = 64 * 1024
"""Of a request's first line and headers together: as much as the gRPC port takes."""


class Patient(HttpToolsProtocol):
    """A connection that is closed when its peer is too slow. When all are taken, one without a request makes way."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Begin without a peer."""
        super().__init__(config, server_state, app_state, _loop)
        self._since_s = 0.0
        """When it began to wait for what it waits for now."""
        self._header_bytes = 0
        self._in_headers = False
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: MutableMapping[str, Any] = {}
        """The task that answers the request, which the peer's leaving cancels (`Exchange.left_alone`)."""

    # -- uvicorn's own steps ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Begin to wait."""
        if len(self.connections) >= http_connections(limit()) and not self._make_room():
            transport.abort()
            return
        super().connection_made(transport)
        self._since_s = self.loop.time()
        self._timer = self.loop.call_later(HEADER_S, self._look)

    def data_received(self, data: bytes) -> None:
        """Take what came; a peer whose headers do not end is cut off."""
        self._since_s = self.loop.time()
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse_headers()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_headers, self._header_bytes = True, 0
        self._leaving = self.scope[LEAVING] = {}  # type: ignore[typeddict-unknown-key] # ours

    def on_headers_complete(self) -> None:
        """Hand the request over."""
        self._in_headers = False
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those of one piece of data count, too."""
        if self._in_headers:
            self._header_bytes += len(name) + len(value)
        super().on_header(name, value)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking, and cancel what nobody waits for."""
        if self._timer is None:
            return
        self._timer.cancel()
        super().connection_lost(exc)
        task = self._leaving.get("task")
        if task is not None:
            self._leaving["gone"] = True
            task.cancel()

    def resume_writing(self) -> None:
        """Go on: the peer reads."""
        self._since_s = self.loop.time()
        super().resume_writing()

    # -- who makes way ---------------------------------------------------------------------------------------------

    def _refuse_headers(self) -> None:
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        )
        self.transport.close()

    def _is_answering(self) -> bool:
        """Tell whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _is_sending(self) -> bool:
        """Tell whether the peer is in the middle of a body that somebody waits for."""
        return self._is_answering() and self.cycle.more_body and not self.flow.read_paused

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for its peer; False when all are being answered."""
        waiting = [
            each
            for each in self.connections
            if isinstance(each, Patient) and (not each._is_answering() or each._is_sending())  # noqa: SLF001 - its own kind
        ]
        if waiting:
            min(waiting, key=lambda each: each._since_s).transport.abort()  # noqa: SLF001 - its own kind
        return bool(waiting)

    def _patience_s(self) -> float | None:
        """Return how long its peer may take for what it owes; None when the peer is the one who waits."""
        if not self._is_answering():
            return HEADER_S if self.cycle is None or self._in_headers else KEEP_ALIVE_S
        if self._is_sending():
            return HEADER_S
        return ANSWER_S if self.flow.write_paused else None

    def _look(self) -> None:
        """Close it if it is too slow; else look again."""
        patience_s = self._patience_s()
        if patience_s is not None and self.loop.time() - self._since_s >= patience_s:
            self.transport.abort()
            return
        self._timer = self.loop.call_later(HEADER_S / 4, self._look)
