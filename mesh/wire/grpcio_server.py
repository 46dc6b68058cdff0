"""The grpcio engine, server side: hot methods as bytes on a `grpc.aio` server, with plain services beside them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from mesh.api.details import trailers_of
from mesh.api.status import status_of
from mesh.core.errors import MeshError, let_go
from mesh.wire.transport import Call, HotMethods, Limits, StreamHandler, TlsConfig, UnaryHandler

log = logging.getLogger(__name__)

NEVER_MS = 2**31 - 1
"""What grpc takes for no limit."""


class GrpcioServer:
    """A `transport.Server` on grpc.aio. Construct it, then `start`."""

    def __init__(
        self,
        host: str,
        port: int,
        hot: HotMethods,
        services: Sequence[grpc.GenericRpcHandler[Any, Any]],
        *,
        limits: Limits,
        tls: TlsConfig | None = None,
        reuse_port: bool = False,
    ) -> None:
        self._host = host
        self._port = port
        self._hot = hot
        self._services = services
        self._limits = limits
        self._tls = tls
        self._reuse_port = reuse_port
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """host:port it listens on; the real port after `start` when 0 was asked for."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen. Raises OSError when the address cannot be had."""
        server = grpc.aio.server(options=self._options())
        server.add_generic_rpc_handlers([_Hot(self._hot), *self._services])
        address = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        try:
            if self._tls is None:
                self._port = server.add_insecure_port(address)
            else:
                self._port = server.add_secure_port(address, _credentials(self._tls))
        except RuntimeError as error:
            msg = f"cannot listen on {address}: is another server there? Choose another port ({error})"
            raise OSError(msg) from error
        await server.start()
        self._server = server

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, wait at most `grace_s` seconds for those in flight, then cut."""
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None

    def _options(self) -> list[tuple[str, Any]]:
        return [
            # The cap of the limits, not grpcio's 4 MiB: a message above it is refused with RESOURCE_EXHAUSTED.
            ("grpc.max_receive_message_length", self._limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 64 * 1024),
            # Routers ask a node that is silent twice a second (`mesh.wire.alive`), and clients theirs: no ping is one
            # too many, as there are few of them.
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_permit_without_calls", 1),
            # Two processes on one port would share the calls silently: a second one must fail, unless it is meant.
            ("grpc.so_reuseport", int(self._reuse_port)),
            ("grpc.max_connection_age_ms", int(self._limits.max_connection_age_s * 1000) or NEVER_MS),
        ]

    def __repr__(self) -> str:
        """Show the address and whether it listens."""
        return f"<GrpcioServer {self.address} {'serving' if self._server else 'stopped'}>"


def _credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    if tls.cert is None or tls.key is None:
        msg = "TLS on a server needs both a certificate and its key"
        raise ValueError(msg)
    pair = (Path(tls.key).read_bytes(), Path(tls.cert).read_bytes())
    roots = Path(tls.ca).read_bytes() if tls.ca else None
    return grpc.ssl_server_credentials([pair], root_certificates=roots, require_client_auth=roots is not None)


class _Hot(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in the stubs only, not when it runs
    """Finds the hot methods by path and carries their messages as bytes."""

    def __init__(self, hot: HotMethods) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {}
        for method, unary in hot.unary.items():
            self._handlers[method] = grpc.unary_unary_rpc_method_handler(_unary(method, unary))
        for method, stream in hot.stream.items():
            self._handlers[method] = grpc.stream_stream_rpc_method_handler(_stream(method, stream))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """Return the handler of a hot method; None leaves the call to the services behind."""
        return self._handlers.get(handler_call_details.method)


def _call(method: str, context: Any) -> Call:
    left_s = context.time_remaining()
    return Call(
        method=method,
        metadata=tuple((key, value) for key, value in context.invocation_metadata() or ()),
        deadline_s=None if left_s is None else time.monotonic() + left_s,
        peer=context.peer(),
    )


async def _fail(call: Call, context: Any, error: Exception, *, begun: bool = False) -> None:
    code, text = status_of(error)
    if not isinstance(error, MeshError):
        log.error("a handler failed", extra={"method": call.method}, exc_info=error)
    let_go(error)
    if call.headers and not begun:
        await context.send_initial_metadata(call.headers)
    await context.abort(code, text, (*call.trailers, *trailers_of(error)))


def _unary(method: str, handler: UnaryHandler) -> Any:
    async def answer(message: bytes, context: Any) -> bytes | None:
        call = _call(method, context)
        try:
            reply = await handler(call, message)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the edge: every failure becomes a status
            message = b""  # grpcio keeps what `abort` raises, with this frame.
            await _fail(call, context, error)
            return None
        if call.headers:
            await context.send_initial_metadata(call.headers)
        if call.trailers:
            context.set_trailing_metadata(tuple(call.trailers))
        return reply

    return answer


def _stream(method: str, handler: StreamHandler) -> Any:
    async def answer(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        call = _call(method, context)
        replies = handler(call, messages)
        begun = False
        try:
            async for reply in replies:
                if not begun and call.headers:
                    await context.send_initial_metadata(call.headers)
                begun = True
                yield reply
                del reply
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the edge: every failure becomes a status
            await _fail(call, context, error, begun=begun)
        finally:
            close = getattr(replies, "aclose", None)
            if close is not None:
                await close()
        if not begun and call.headers:
            await context.send_initial_metadata(call.headers)
        if call.trailers:
            context.set_trailing_metadata(tuple(call.trailers))

    return answer
