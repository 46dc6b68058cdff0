"""The embedded registry: etcd's gRPC API in this process, in memory, for a laptop without an etcd.

Owns the gRPC server, the clock and the lease timer around the pure parts (`embedded_state`, `embedded_txn`,
`embedded_lease`, `embedded_watch`). One member, no disk, no authentication: what it holds is gone when it stops, and a
new start is a new cluster with another id, which is how clients see that they must list again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeVar, cast

import grpc
from google.protobuf.message import Message

from mesh.api.gen.etcd import rpc_pb2 as rpc
from mesh.api.service import generic_handler
from mesh.core.errors import Code
from mesh.core.texts import status_text
from mesh.registry.embedded_lease import Leases
from mesh.registry.embedded_state import EtcdError, Keys
from mesh.registry.embedded_txn import Writer, check_key
from mesh.registry.embedded_watch import Watchers
from mesh.wire.lasting import lasting

Response = TypeVar("Response", bound=Message)

KEEP_REVISIONS: Final = 10_000
"""History for watches that fall behind. A node's record is a few KB, so this is some tens of MB at most."""
_MAX_REQUEST_BYTES: Final = 1536 * 1024
"""etcd's --max-request-bytes; gRPC's own limit is 512 KiB above, as in etcd."""
_PROGRESS_S: Final = 600.0
"""etcd's interval between progress notifications of an idle watch."""
_INBOX: Final = 64
"""Requests of a watch stream that wait to be taken; when it is full the reader stops and flow control holds."""
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_SERVICES: Final = ("KV", "Watch", "Lease", "Maintenance", "Auth")


class EmbeddedRegistry:
    """Serves on host:port (0: any free port) from `start` to `stop`; each start begins empty."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, keep_revisions: int = KEEP_REVISIONS) -> None:
        self._host = host
        self._port = port
        self._keep_revisions = keep_revisions
        self._server: Any = None
        self._servicer: _Servicer | None = None
        self._timer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<EmbeddedRegistry {self._host}:{self._port} {self._servicer!r}>"

    @property
    def address(self) -> str:
        """host:port that clients reach it at, once started."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen. Raises OSError when the address is taken."""
        if self._server is not None:
            raise RuntimeError(f"expected one start of the embedded registry at {self.address}, it runs already")
        servicer = _Servicer(self._keep_revisions)
        server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES + 512 * 1024),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                # Clients may ping every 5 s, as etcd lets them.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            )
        )
        server.add_generic_rpc_handlers(
            tuple(generic_handler(rpc.DESCRIPTOR.services_by_name[name], servicer) for name in _SERVICES)
        )
        try:
            self._port = server.add_insecure_port(f"{self._host}:{self._port}")
        except RuntimeError as error:
            raise OSError(f"expected a free address for the embedded registry, got {self.address}: {error}") from error
        await server.start()
        self._server, self._servicer = server, servicer
        self._timer = asyncio.create_task(
            lasting("ending leases", servicer.expire_leases), name="embedded registry leases"
        )

    async def stop(self) -> None:
        """End every call and forget everything. Idempotent."""
        server, self._server = self._server, None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            await asyncio.gather(timer, return_exceptions=True)
        if server is not None:
            await server.stop(None)
        self._servicer = None


class _Servicer:
    """etcd's methods by their names in the .proto."""

    def __init__(self, keep_revisions: int) -> None:
        self._keys = Keys(keep_revisions)
        self._leases = Leases()
        self._writer = Writer(self._keys, self._leases)
        self._cluster = secrets.randbits(63) + 1
        self._member = secrets.randbits(63) + 1
        self._wakes: set[asyncio.Event] = set()
        self._granted = asyncio.Event()

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<{self._keys!r} {self._leases!r} watch streams={len(self._wakes)}>"

    async def expire_leases(self) -> None:
        """End leases when their time has come."""
        while True:
            now_s = time.monotonic()
            for lease in self._leases.expired(now_s):
                self._writer.end_lease(lease)
                self._wake()
            self._granted.clear()
            next_s = self._leases.next_expiry_s()
            try:
                async with asyncio.timeout(None if next_s is None else max(0.0, next_s - now_s)):
                    await self._granted.wait()
            except TimeoutError:
                continue

    async def Range(self, request: rpc.RangeRequest, context: Any) -> rpc.RangeResponse:
        """Read keys."""

        def answer() -> rpc.RangeResponse:
            check_key(request.key)
            return self._keys.range(request)

        return await self._answer(request, context, answer)

    async def Put(self, request: rpc.PutRequest, context: Any) -> rpc.PutResponse:
        """Write a key."""
        return await self._answer(request, context, lambda: self._writer.put(request))

    async def DeleteRange(self, request: rpc.DeleteRangeRequest, context: Any) -> rpc.DeleteRangeResponse:
        """Delete keys."""
        return await self._answer(request, context, lambda: self._writer.delete_range(request))

    async def Txn(self, request: rpc.TxnRequest, context: Any) -> rpc.TxnResponse:
        """Compare, then read and write at once."""
        return await self._answer(request, context, lambda: self._writer.txn(request))

    async def Compact(self, request: rpc.CompactionRequest, context: Any) -> rpc.CompactionResponse:
        """Forget history."""

        def answer() -> rpc.CompactionResponse:
            self._keys.compact(request.revision)
            return rpc.CompactionResponse()

        return await self._answer(request, context, answer)

    async def LeaseGrant(self, request: rpc.LeaseGrantRequest, context: Any) -> rpc.LeaseGrantResponse:
        """Begin a lease."""

        def answer() -> rpc.LeaseGrantResponse:
            lease = self._leases.grant(request.ID or secrets.randbits(62) + 1, request.TTL, time.monotonic())
            self._granted.set()
            return rpc.LeaseGrantResponse(ID=lease.id, TTL=lease.ttl_s)

        return await self._answer(request, context, answer)

    async def LeaseRevoke(self, request: rpc.LeaseRevokeRequest, context: Any) -> rpc.LeaseRevokeResponse:
        """End a lease and delete its keys."""

        def answer() -> rpc.LeaseRevokeResponse:
            self._writer.end_lease(request.ID)
            return rpc.LeaseRevokeResponse()

        return await self._answer(request, context, answer)

    async def LeaseTimeToLive(self, request: rpc.LeaseTimeToLiveRequest, context: Any) -> rpc.LeaseTimeToLiveResponse:
        """Tell how long a lease lives on, -1 for one that is gone."""

        def answer() -> rpc.LeaseTimeToLiveResponse:
            lease = self._leases.get(request.ID)
            if lease is None:
                return rpc.LeaseTimeToLiveResponse(ID=request.ID, TTL=-1)
            return rpc.LeaseTimeToLiveResponse(
                ID=lease.id,
                TTL=int(max(0.0, lease.expires_s - time.monotonic())),
                grantedTTL=lease.ttl_s,
                keys=sorted(lease.keys) if request.keys else (),
            )

        return await self._answer(request, context, answer)

    async def LeaseLeases(self, request: rpc.LeaseLeasesRequest, context: Any) -> rpc.LeaseLeasesResponse:
        """List leases."""
        return await self._answer(
            request,
            context,
            lambda: rpc.LeaseLeasesResponse(leases=[rpc.LeaseStatus(ID=each) for each in self._leases.ids()]),
        )

    async def LeaseKeepAlive(
        self, requests: AsyncIterator[rpc.LeaseKeepAliveRequest], _context: Any
    ) -> AsyncIterator[rpc.LeaseKeepAliveResponse]:
        """Renew leases as they are named; a lease that is gone is answered with no time to live."""
        async for request in requests:
            ttl_s = self._leases.renew(request.ID, time.monotonic())
            yield self._stamp(rpc.LeaseKeepAliveResponse(ID=request.ID, TTL=ttl_s))

    async def Status(self, request: rpc.StatusRequest, context: Any) -> rpc.StatusResponse:
        """Describe the one member."""
        return await self._answer(
            request,
            context,
            lambda: rpc.StatusResponse(version="3.4.0", leader=self._member, raftIndex=self._keys.revision, raftTerm=1),
        )

    async def Authenticate(self, _request: rpc.AuthenticateRequest, context: Any) -> rpc.AuthenticateResponse:
        """Refuse: there are no users here."""
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
        raise AssertionError

    async def Watch(self, requests: AsyncIterator[rpc.WatchRequest], _context: Any) -> AsyncIterator[rpc.WatchResponse]:
        """Send changes as they come. What waits is positions in the history, never events."""
        watchers = Watchers(self._keys)
        inbox: asyncio.Queue[rpc.WatchRequest] = asyncio.Queue(_INBOX)
        wake = asyncio.Event()

        async def read() -> None:
            async for request in requests:
                await inbox.put(request)
                wake.set()

        reader = asyncio.create_task(read(), name="embedded registry watch requests")
        self._wakes.add(wake)
        tick_s = time.monotonic() + _PROGRESS_S
        try:
            while True:
                wake.clear()
                while not inbox.empty():
                    answer = watchers.handle(inbox.get_nowait())
                    if answer is not None:
                        yield self._stamp(answer)
                while responses := watchers.ready():
                    for response in responses:
                        yield self._stamp(response)
                try:
                    async with asyncio.timeout(max(0.0, tick_s - time.monotonic())):
                        await wake.wait()
                except TimeoutError:
                    tick_s = time.monotonic() + _PROGRESS_S
                    for response in watchers.tick():
                        yield self._stamp(response)
        finally:
            self._wakes.discard(wake)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _answer(self, request: Message, context: Any, answer: Callable[[], Response]) -> Response:
        """Run one call of the state machine and send what changed to the watches."""
        revision = self._keys.revision
        try:
            if request.ByteSize() > _MAX_REQUEST_BYTES:
                raise EtcdError(Code.INVALID_ARGUMENT, "etcdserver: request is too large")  # noqa: TRY301 - one exit
            response = answer()
        except EtcdError as error:
            await context.abort(_CODES[error.code], status_text(error.text))
            raise
        if self._keys.revision != revision:
            self._wake()
        return self._stamp(response)

    def _wake(self) -> None:
        for each in self._wakes:
            each.set()

    def _stamp(self, response: Response) -> Response:
        header = cast("rpc.ResponseHeader", response.header)  # type: ignore[attr-defined]  # every response has one
        header.cluster_id, header.member_id, header.raft_term = self._cluster, self._member, 1
        if not header.revision and not getattr(response, "compact_revision", 0):
            header.revision = self._keys.revision
        return response
