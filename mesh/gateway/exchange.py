"""One HTTP request and its answer: the body read within bounds and inflated, the deadline, the caller who leaves.

Bodies are counted in the process's account as gRPC's messages are, from `COUNTED` bytes on.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from mesh.core.errors import InvalidRequest, TooLarge, Unimplemented
from mesh.core.forwarding import NOTHING, Pattern, forwarded
from mesh.core.traffic.held import COUNTED, CallerBytes, HeldBytes
from mesh.gateway.failures import failure
from mesh.wire.grpc_framing import BadMessage, Inflation
from mesh.wire.inflate import inflate
from mesh.wire.transport import Call

JSON: Final = b"application/json"
TIMEOUT_HEADER: Final = b"x-request-timeout-ms"
MAX_TIMEOUT_MS: Final = 1_000_000_000
"""Eleven days; what is longer is meant as "no limit" and could not be added to a clock."""
COMPRESSED_FROM: Final = 1024
"""Bytes of an answer from which on it is compressed for who accepts it: below, headers outweigh what is saved."""
LEAVING: Final = "mesh.leaving"
"""In a request's scope: the tasks that a connection's end cancels (`Patient`)."""

_BITS: Final[Mapping[bytes, int]] = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""zlib's window bits for the content codings (RFC 9110 §8.4.1): gzip's and zlib's wrapping."""

_NOT_METADATA: Final = frozenset(
    b"host connection keep-alive proxy-connection transfer-encoding te trailer upgrade expect content-length "
    b"content-type content-encoding accept accept-encoding accept-language user-agent inference-header-content-length "
    b"x-request-timeout-ms origin referer cookie cache-control pragma".split()
)
"""Headers between the caller and this port; the others go along as metadata do."""
_NOT_PREFIXES: Final = (b"mesh-", b"grpc-", b"sec-", b":")

Handler = Callable[["Exchange"], Awaitable[None]]


class Gone(Exception):
    """The caller left before its request was answered: there is nobody to tell."""


class Exchange:
    """One request. `headers` are by lower-case name, the last of those with one name."""

    __slots__ = ("_held", "_receive", "_scope", "_send", "began", "caller", "headers", "path")

    def __init__(self, scope: Scope, receive: Receive, send: Send, held: HeldBytes) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._held = held
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.path: Mapping[str, str] = scope.get("path_params", {})
        self.caller: CallerBytes | None = None
        self.began = False
        """Whether the answer's status was sent."""

    async def body(self, max_bytes: int) -> bytes:
        """Return the whole body, inflated. Raises `TooLarge`, `TooMuchHeld`, `InvalidRequest`, and `Gone`."""
        said = self.headers.get(b"content-length", b"0")
        coming = int(said) if said.isdigit() else 0
        if coming > max_bytes:
            raise TooLarge(f"expected a body of at most {max_bytes} bytes, got one of {coming}")
        parts: list[bytes] = []
        size = counted = 0
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            part = message.get("body", b"")
            more = message.get("more_body", False)
            size += len(part)
            if size > max_bytes:
                raise TooLarge(f"expected a body of at most {max_bytes} bytes, got more")
            parts.append(part)
            if size >= COUNTED and max(size, coming) > counted:
                # All of it before it comes, where its length is known.
                self.count(max(size, coming) - counted)
                counted = max(size, coming)
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        return await self._inflated(whole, max_bytes)

    def count(self, size: int) -> None:
        """Count bytes that are held for this caller until it is answered. Raises `TooMuchHeld`."""
        if self.caller is None:
            self.caller = self._held.caller()
        self.caller.take(size)

    async def _inflated(self, body: bytes, max_bytes: int) -> bytes:
        coding = self.headers.get(b"content-encoding", b"identity").strip().lower()
        if coding in (b"", b"identity"):
            return body
        if coding not in _BITS:
            raise Unimplemented(
                f"expected Content-Encoding gzip, deflate or identity, got {coding.decode('latin-1')[:40]!r}"
            )
        if not body:
            raise InvalidRequest("expected a compressed body, got an empty one")
        if self.caller is None:
            self.caller = self._held.caller()
        try:
            whole = await inflate(Inflation(body, _BITS[coding], max_bytes, prefixed=False), self.caller)
        except BadMessage as error:
            raise InvalidRequest(f"expected a {coding.decode()} body: {error}") from error
        if len(whole) >= COUNTED:
            self.count(len(whole))
        return whole

    def deadline_s(self) -> float | None:
        """Return when the caller stops waiting, on the clock of `time.monotonic`. Raises `InvalidRequest`."""
        said = self.headers.get(TIMEOUT_HEADER)
        if said is None:
            return None
        if not said.isdigit() or len(said) > 18 or int(said) < 1:
            raise InvalidRequest(
                f"expected whole milliseconds from 1 up in X-Request-Timeout-Ms, got {said.decode('latin-1')[:40]!r}"
            )
        return time.monotonic() + min(int(said), MAX_TIMEOUT_MS) / 1000

    def call(self, method: str, deadline_s: float | None, forwards: Pattern | None = None) -> Call:
        """Return the call that stands for this request: its headers are the metadata.

        Those that match `forwards` are for models to read, whatever else they are for. Raises `InvalidRequest` for one
        that may not be.
        """
        metadata = tuple(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in self._scope["headers"]
            if name not in _NOT_METADATA and not name.startswith(_NOT_PREFIXES) and not name.endswith(b"-bin")
        )
        client = self._scope["client"]
        peer = f"http:{client[0]}:{client[1]}" if client else "http"
        return Call(method, metadata, deadline_s, peer, forwarded=self._forwarded(forwards))

    def _forwarded(self, forwards: Pattern | None) -> Mapping[str, str]:
        if forwards is None:
            return NOTHING
        return forwarded(forwards, [(name.decode("latin-1"), value) for name, value in self._scope["headers"]])

    async def answer(
        self, status: int, body: bytes, kind: bytes = JSON, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send an answer, compressed where the caller accepts that."""
        told = [(b"content-type", kind)]
        if headers:
            told += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        accepted = self.headers.get(b"accept-encoding")
        if accepted is not None and len(body) >= COMPRESSED_FROM:
            coding = _coding_of(accepted)
            if coding is not None:
                body = await asyncio.to_thread(_deflated, body, _BITS[coding])
                told += [(b"content-encoding", coding), (b"vary", b"accept-encoding")]
        told.append((b"content-length", b"%d" % len(body)))
        self.began = True
        await self._send({"type": "http.response.start", "status": status, "headers": told})
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, status: int, kind: bytes) -> None:
        """Begin an answer whose parts come one by one (`part`), until `end`."""
        self.began = True
        told = [(b"content-type", kind), (b"cache-control", b"no-cache")]
        await self._send({"type": "http.response.start", "status": status, "headers": told})

    async def part(self, part: bytes) -> None:
        """Send a part; waits while the caller does not read."""
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def end(self) -> None:
        """End an answer in parts."""
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: Exception) -> None:
        """Answer with an error."""
        told = failure(error)
        # The rest of a body that was refused is read and dropped: a connection closed with bytes unread is reset, and
        # its peer would lose the answer that says why.
        await self.answer(told.status, told.body, headers=told.headers)

    @contextmanager
    def left_alone(self) -> Iterator[None]:
        """Cancel what is within when the caller leaves; raises `Gone` then."""
        leaving: MutableMapping[str, Any] | None = self._scope.get(LEAVING)
        task = asyncio.current_task()
        if leaving is None or task is None:
            yield
            return
        leaving["task"] = task
        try:
            yield
        except asyncio.CancelledError:
            if not leaving.get("gone"):
                raise
            task.uncancel()
            raise Gone from None
        finally:
            leaving.pop("task", None)

    def close(self) -> None:
        """Give back what was counted."""
        if self.caller is not None:
            self.caller.close()


class Way:
    """A handler as an ASGI application: errors are answered, callers who left are not."""

    __slots__ = ("_handler", "_held")

    def __init__(self, handler: Handler, held: HeldBytes) -> None:
        self._handler = handler
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(scope, receive, send, self._held)
        try:
            with exchange.left_alone():
                await self._handler(exchange)
        except Gone:
            return
        except Exception as error:
            if exchange.began:
                raise
            await exchange.fail(error)
        finally:
            exchange.close()


def _coding_of(accepted: bytes) -> bytes | None:
    """Return the coding to use of an Accept-Encoding header: the first that is known and not refused (q=0)."""
    for each in accepted.lower().split(b","):
        name, _, weight = each.partition(b";")
        if name.strip() in _BITS and weight.replace(b" ", b"") not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000"):
            return name.strip()
    return None


def _deflated(body: bytes, bits: int) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, bits)
    return packer.compress(body) + packer.flush()
