"""One call on an etcd of several members: which endpoint, which token, how long, and which error of ours.

Owns the channels, the failover between endpoints, TLS, the auth token and the translation of gRPC statuses. What the
calls mean is `etcd_client`'s affair, and how a watch goes on is `etcd_watch`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import grpc
from google.protobuf.message import Message
from grpc.aio import EOF  # type: ignore[attr-defined]  # grpc-stubs lack it

from mesh.api.gen.etcd import rpc_pb2 as rpc
from mesh.api.service import stream, unary
from mesh.core.errors import LeaseLost, MeshError, RegistryRefused, RegistryUnavailable
from mesh.registry.config import RegistryConfig

Response = TypeVar("Response", bound=Message)
Metadata = tuple[tuple[str, str], ...]
Send = Callable[[Any, Metadata, float], Awaitable[Response]]
"""(channel, metadata, timeout in seconds) -> response."""

_PAUSE_S: Final = 0.1
"""Between two rounds over endpoints that all refused: short beside a restart of etcd, long beside a refusal (1 ms)."""

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # etcd drops clients that ping more often than every 5 s (--grpc-keepalive-min-time).
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    # What grpcio 1.85 really waits for a keepalive ping's answer; its default is a minute.
    ("grpc.http2.ping_timeout_ms", 4_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted etcd is noticed within 2 s. The minimum is also the time a connection attempt gets: not too small.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Two clients of one process must not share the backoff of one connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)

_ELSEWHERE: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
    }
)
"""Statuses of a member or a connection in trouble; another member, or the same one later, may answer."""
_TOKEN_TEXTS: Final = ("invalid auth token", "revision of auth store is old")
_LEASE_TEXT: Final = "requested lease not found"


@dataclass(frozen=True, slots=True)
class Answer(Generic[Response]):
    """A response; `repeated` is true when an earlier attempt failed in a way that may have been carried out."""

    message: Response
    repeated: bool


class Caller:
    """Sends calls to the endpoint that answered last, and to the next one when it does not answer."""

    def __init__(self, config: RegistryConfig) -> None:
        self.config = config
        self._channels: list[Any] = []
        self._good = 0
        self._token = ""
        self._token_lock = asyncio.Lock()
        self._closed = False

    def __repr__(self) -> str:
        """Show the endpoint in use."""
        return f"<Caller endpoint={self.endpoint} of={len(self.config.endpoints)} open={len(self._channels)}>"

    @property
    def endpoint(self) -> str:
        """host:port that the next call goes to."""
        return self.config.endpoints[self._good]

    async def unary(self, path: str, request: Message, response: type[Response]) -> Answer[Response]:
        """Call unary `path`. Raises `RegistryUnavailable`, `RegistryRefused` or `LeaseLost`."""

        async def send(channel: Any, metadata: Metadata, timeout_s: float) -> Response:
            method = unary(channel, path, type(request), response)
            return await method(request, metadata=metadata, timeout=timeout_s)  # type: ignore[no-any-return]

        return await self._call(send)

    async def exchange(self, path: str, request: Message, response: type[Response]) -> Answer[Response]:
        """Send one message on two-way stream `path` and return the first answer. Raises as `unary` does."""

        async def send(channel: Any, metadata: Metadata, timeout_s: float) -> Response:
            method = stream(channel, path, type(request), response)
            call = method(metadata=(*metadata, ("hasleader", "true")), timeout=timeout_s)
            try:
                await call.write(request)
                answer = await call.read()
                if answer is EOF:
                    raise RegistryUnavailable(f"expected an answer on {path}, the stream ended")
                return answer  # type: ignore[no-any-return]
            finally:
                call.cancel()

        return await self._call(send)

    async def open(self, path: str, request: type[Message], response: type[Message]) -> tuple[Any, str]:
        """Open two-way stream `path` on the endpoint in use; return the call and the endpoint.

        The token is fresh. `hasleader` asks a member that is cut off from the others to end the stream.
        """
        channel = await self._channel()
        endpoint = self.endpoint
        self._token = ""
        try:
            metadata = await self._metadata(self.config.timeout_s)
        except grpc.aio.AioRpcError:
            self.leave(endpoint)
            raise
        call = stream(channel, path, request, response)(metadata=(*metadata, ("hasleader", "true")))
        return call, endpoint

    def leave(self, endpoint: str) -> None:
        """Say that `endpoint` does not answer: the next call goes to the one after it."""
        if endpoint == self.endpoint:
            self._good = (self._good + 1) % len(self.config.endpoints)

    async def close(self) -> None:
        """Close the connections; calls in flight fail."""
        self._closed = True
        channels, self._channels = self._channels, []
        for channel in channels:
            await channel.close()

    async def _call(self, send: Send[Response]) -> Answer[Response]:
        end_s = time.monotonic() + self.config.timeout_s
        renewed = repeated = False
        said = "nothing"
        while True:
            for left in range(len(self.config.endpoints), 0, -1):
                remaining_s = end_s - time.monotonic()
                if remaining_s <= 0:
                    raise self._unavailable(said)
                endpoint = self.endpoint
                try:
                    channel = await self._channel()
                    metadata = await self._metadata(remaining_s / left)
                    return Answer(await send(channel, metadata, remaining_s / left), repeated)
                except grpc.aio.AioRpcError as error:
                    if not renewed and self.config.user and is_token_error(error.details()):
                        renewed, self._token = True, ""
                        continue
                    if error.code() not in _ELSEWHERE:
                        raise translate(error) from error
                    said = f"{error.code().name} {error.details()}"
                    repeated = repeated or "failed to connect" not in (error.details() or "")
                    self.leave(endpoint)
            await asyncio.sleep(max(0.0, min(_PAUSE_S, end_s - time.monotonic())))

    def _unavailable(self, said: str) -> RegistryUnavailable:
        endpoints = ", ".join(self.config.endpoints)
        return RegistryUnavailable(
            f"expected an answer of etcd at {endpoints} within {self.config.timeout_s:g} s, the last one said: {said}; "
            "check that etcd runs and can be reached"
        )

    async def _channel(self) -> Any:
        if self._closed:
            raise RegistryUnavailable("expected an open registry client, this one was closed")
        if not self._channels:
            credentials = await asyncio.to_thread(_credentials, self.config)
            if not self._channels:
                self._channels = [_open(endpoint, credentials) for endpoint in self.config.endpoints]
        return self._channels[self._good]

    async def _metadata(self, timeout_s: float) -> Metadata:
        if not self.config.user:
            return ()
        async with self._token_lock:
            if not self._token:
                self._token = await self._authenticate(timeout_s)
            return (("token", self._token),)

    async def _authenticate(self, timeout_s: float) -> str:
        request = rpc.AuthenticateRequest(name=self.config.user, password=self.config.password)
        method = unary(
            await self._channel(), "/etcdserverpb.Auth/Authenticate", rpc.AuthenticateRequest, rpc.AuthenticateResponse
        )
        try:
            response = await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() in _ELSEWHERE:
                raise
            raise RegistryRefused(
                f"etcd did not take user {self.config.user!r}: {error.details()}; check user and password"
            ) from error
        return str(response.token)


def is_token_error(text: str | None) -> bool:
    """Tell whether etcd wants a new token."""
    return any(each in (text or "") for each in _TOKEN_TEXTS)


def translate(error: grpc.aio.AioRpcError) -> MeshError:
    """Return our error for a status of etcd that another endpoint would give as well."""
    details = error.details() or ""
    if _LEASE_TEXT in details:
        return LeaseLost("the lease expired or was revoked; grant a new one")
    return RegistryRefused(f"etcd refused: {error.code().name} {details}")


def _credentials(config: RegistryConfig) -> grpc.ChannelCredentials | None:
    if config.tls is None:
        return None
    try:
        roots, key, chain = (
            Path(path).read_bytes() if path else None for path in (config.tls.ca, config.tls.key, config.tls.cert)
        )
    except OSError as error:
        raise RegistryRefused(f"expected a readable PEM file for the registry's TLS: {error}") from error
    return grpc.ssl_channel_credentials(root_certificates=roots, private_key=key, certificate_chain=chain)


def _open(endpoint: str, credentials: grpc.ChannelCredentials | None) -> Any:
    if credentials is None:
        return grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
    return grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
