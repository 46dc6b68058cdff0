"""One call on an etcd of several members: which endpoint, which token, how long, and which error of ours.

Owns the channels, the failover between endpoints and TLS. What etcd's errors mean is in `etcd_errors`, the token is
`etcd_token`'s affair, what the calls mean is `etcd_client`'s, and how a watch goes on is `etcd_watch`'s.
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

from mesh.api.service import stream, unary
from mesh.core.errors import Code, RegistryMisconfigured, RegistryUnavailable
from mesh.registry.config import RegistryConfig
from mesh.registry.etcd_errors import Verdict, error_of, row_of, silence
from mesh.registry.etcd_token import Metadata, Token

Response = TypeVar("Response", bound=Message)
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
        self._token = Token(config)
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

        The token is fresh: a watch that is asked for with an old one is refused like one without permission.
        `hasleader` asks a member that is cut off from the others to end the stream. Raises as `unary` does, but asks
        one member.
        """
        endpoint = self.endpoint
        channel = await self._channel()
        self._token.forget()
        try:
            metadata = await self._token.metadata(channel, self.share_s)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            self.leave(endpoint)
            raise silence((endpoint,), self.share_s, _said(error)) from error
        call = stream(channel, path, request, response)(metadata=(*metadata, ("hasleader", "true")))
        return call, endpoint

    @property
    def share_s(self) -> float:
        """Seconds that one member has to answer, where all shall be asked in the time of one call."""
        return self.config.timeout_s / len(self.config.endpoints)

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
                    raise silence(self.config.endpoints, self.config.timeout_s, said)
                endpoint, channel = self.endpoint, await self._channel()
                metadata: Metadata = ()
                try:
                    metadata = await self._token.metadata(channel, remaining_s / left)
                    return Answer(await send(channel, metadata, remaining_s / left), repeated)
                except TimeoutError as error:
                    said = _said(error)
                except grpc.aio.AioRpcError as error:
                    code, text = Code(error.code().value[0]), error.details() or ""
                    row = row_of(code, text)
                    if row.verdict is Verdict.TOKEN and self._token.wanted and not renewed:
                        renewed = True
                        self._token.forget(metadata)
                        continue
                    # A token that was made just now and is not known: this member lags behind the others.
                    passing = row.verdict is Verdict.TOKEN and self._token.wanted
                    if row.verdict is not Verdict.ELSEWHERE and not passing:
                        raise error_of(code, text) from error
                    said = _said(error)
                    repeated = repeated or "failed to connect" not in text
                self.leave(endpoint)
            await asyncio.sleep(max(0.0, min(_PAUSE_S, end_s - time.monotonic())))

    async def _channel(self) -> Any:
        if self._closed:
            raise RegistryUnavailable("expected an open registry client, this one was closed")
        if not self._channels:
            credentials = await asyncio.to_thread(_credentials, self.config)
            if not self._channels:
                self._channels = [_open(endpoint, credentials) for endpoint in self.config.endpoints]
        return self._channels[self._good]


def _said(error: grpc.aio.AioRpcError | TimeoutError) -> str:
    return f"{error.code().name} {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else "nothing"


def _credentials(config: RegistryConfig) -> grpc.ChannelCredentials | None:
    if config.tls is None:
        return None
    try:
        roots, key, chain = (
            Path(path).read_bytes() if path else None for path in (config.tls.ca, config.tls.key, config.tls.cert)
        )
    except OSError as error:
        raise RegistryMisconfigured(f"expected a readable PEM file for the registry's TLS: {error}") from error
    return grpc.ssl_channel_credentials(root_certificates=roots, private_key=key, certificate_chain=chain)


def _open(endpoint: str, credentials: grpc.ChannelCredentials | None) -> Any:
    if credentials is None:
        return grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
    return grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
