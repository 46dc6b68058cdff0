"""The registry over etcd's own gRPC API: `Store` for one etcd of any number of members.

Owns what each call of `Store` is in etcd's terms. Endpoints, tokens and errors are `etcd_calls`'s affair, the watch
loop is `etcd_watch`'s.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

from mesh.api.gen.etcd import rpc_pb2 as rpc
from mesh.core.errors import LeaseLost, MeshError, RegistryMisconfigured, RegistryRefused
from mesh.registry.config import RegistryConfig
from mesh.registry.etcd_calls import Answer, Caller
from mesh.registry.etcd_token import check
from mesh.registry.etcd_watch import EtcdWatch, bytes_of, entry_of, range_end
from mesh.registry.keys import ROOT
from mesh.registry.store import MAX_WRITES, Batch, Entry, Guard, Listing, Page
from mesh.registry.trouble import Trouble

_KV: Final = "/etcdserverpb.KV/"
_LEASE: Final = "/etcdserverpb.Lease/"
_PAGE: Final = 1000
"""Keys per Range call of a listing: a page of 10 KB records is 10 MB, well under gRPC's and etcd's limits."""


class EtcdClient:
    """A `Store` on a real etcd or on the embedded one. Connects at the first call; `close` it at the end."""

    def __init__(self, config: RegistryConfig) -> None:
        self.config = config
        self._caller = Caller(config)
        self._cluster = 0

    def __repr__(self) -> str:
        """Show the endpoint in use."""
        return f"<EtcdClient {self._caller!r}>"

    async def close(self) -> None:
        """Close the connections; calls in flight fail."""
        await self._caller.close()

    async def wait_ready(self, on_wait: Callable[[str], None]) -> None:
        """Return when the registry answers; wait for ever, telling `on_wait` why, once per change of the reason.

        Whatever it says: a password may be set, a permission given a moment later. Raises `RegistryMisconfigured` for
        what no waiting mends.
        """
        await asyncio.to_thread(check, self.config)
        trouble = Trouble(lambda text: on_wait(f"waiting for the registry: {text}"))
        while True:
            try:
                await self._range(rpc.RangeRequest(key=bytes_of(ROOT), count_only=True))
            except RegistryMisconfigured:
                raise
            except MeshError as error:
                trouble.met(error)
                # A refusal after close() comes at once: never spin.
                await asyncio.sleep(max(0.1, trouble.pause_s))
            else:
                return

    async def get(self, key: str) -> Entry | None:
        """Return the entry of `key`, None when there is none."""
        response = await self._range(rpc.RangeRequest(key=bytes_of(key)))
        return entry_of(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str) -> Listing:
        """Return all entries under `prefix` as of one revision, read in pages."""
        listing, _ = await self._list(prefix)
        return listing

    async def pages(self, prefix: str) -> AsyncGenerator[Page, None]:
        """Yield all entries under `prefix` as of one revision, so that they need not be in memory at once."""
        async with aclosing(self._pages(prefix)) as pages:
            async for page, _ in pages:
                yield page

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write `key` whatever it holds; return the new revision. Raises `LeaseLost` for an unknown lease."""
        request = rpc.PutRequest(key=bytes_of(key), value=value, lease=lease)
        answer = await self._caller.unary(_KV + "Put", request, rpc.PutResponse)
        return self._revision(answer.message.header)

    async def replace(self, key: str, value: bytes | None, *, expected: int, lease: int = 0) -> int | None:
        """Compare-and-swap: write `key` (None deletes it) if its mod revision is `expected` (0: it must not exist).

        Returns the new revision, or None when somebody else was first. Raises `LeaseLost` for an unknown lease. When an
        attempt was cut off and sent again, a key that holds just what was to be written counts as written.
        """
        name = bytes_of(key)
        request = rpc.TxnRequest(
            compare=_compared(Guard(key, mod_revision=expected)),
            success=[_write(name, value, lease)],
            failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=name))],
        )
        answer: Answer[rpc.TxnResponse] = await self._caller.unary(_KV + "Txn", request, rpc.TxnResponse)
        revision = self._revision(answer.message.header)
        if answer.message.succeeded:
            return revision
        if not answer.repeated:
            return None
        found = answer.message.responses[0].response_range.kvs
        if value is None:
            return None if found else revision
        if found and found[0].value == value and found[0].lease == lease:
            return found[0].mod_revision
        return None

    async def write(
        self,
        changes: Mapping[str, bytes | None],
        *,
        guards: Sequence[Guard] = (),
        lease: int = 0,
        unleased: Mapping[str, bytes] = {},
    ) -> int | None:
        """Write all of `changes` (None deletes a key), and `unleased`, in one transaction if all `guards` hold.

        They are at most `MAX_WRITES`; those of `changes` belong to `lease`, the others to none.
        Returns the new revision, or None when a guard did not hold: after an attempt that was cut off and sent again,
        that may be because the first one wrote. Raises `LeaseLost` for an unknown lease.
        """
        if len(changes) + len(unleased) > MAX_WRITES:
            raise ValueError(f"expected at most {MAX_WRITES} keys in one write, got {len(changes) + len(unleased)}")
        leased = [_write(bytes_of(key), value, lease) for key, value in changes.items()]
        request = rpc.TxnRequest(
            compare=[each for guard in guards for each in _compared(guard)],
            success=[*leased, *(_write(bytes_of(key), value, 0) for key, value in unleased.items())],
        )
        answer: Answer[rpc.TxnResponse] = await self._caller.unary(_KV + "Txn", request, rpc.TxnResponse)
        revision = self._revision(answer.message.header)
        return revision if answer.message.succeeded else None

    async def count(self, prefix: str) -> int:
        """Return the number of keys under `prefix`."""
        start = bytes_of(prefix)
        response = await self._range(
            rpc.RangeRequest(key=start or b"\0", range_end=range_end(start), count_only=True),
        )
        return response.count

    async def compact(self, revision: int) -> None:
        """Forget what was before `revision`; one that is forgotten already is fine."""
        try:
            await self._caller.unary(_KV + "Compact", rpc.CompactionRequest(revision=revision), rpc.CompactionResponse)
        except RegistryRefused as error:
            if "has been compacted" not in error.message:
                raise

    async def delete(self, key: str) -> bool:
        """Delete `key`; tell whether it was there (by the last attempt, when one was cut off and sent again)."""
        request = rpc.DeleteRangeRequest(key=bytes_of(key))
        answer = await self._caller.unary(_KV + "DeleteRange", request, rpc.DeleteRangeResponse)
        self._revision(answer.message.header)
        return answer.message.deleted > 0

    async def grant(self, ttl_s: int) -> int:
        """Return the id of a new lease of `ttl_s` seconds (etcd raises it to its least, about 2)."""
        # The id is ours, so that an attempt that was cut off and sent again does not leave a second lease behind.
        wanted = secrets.randbits(62) + 1
        request = rpc.LeaseGrantRequest(TTL=ttl_s, ID=wanted)
        try:
            answer = await self._caller.unary(_LEASE + "LeaseGrant", request, rpc.LeaseGrantResponse)
        except RegistryRefused as error:
            if "lease already exists" in error.message:
                return wanted
            raise
        self._revision(answer.message.header)
        return answer.message.ID

    async def keep_alive(self, lease: int) -> float:
        """Renew `lease` once; return its time to live in seconds. Raises `LeaseLost` when it is gone."""
        request = rpc.LeaseKeepAliveRequest(ID=lease)
        answer = await self._caller.exchange(_LEASE + "LeaseKeepAlive", request, rpc.LeaseKeepAliveResponse)
        self._revision(answer.message.header)
        if answer.message.TTL <= 0:
            raise LeaseLost(f"lease {lease:x} expired or was revoked; grant a new one")
        return float(answer.message.TTL)

    async def revoke(self, lease: int) -> None:
        """End `lease` and delete its keys; a lease that is gone already is fine."""
        try:
            answer = await self._caller.unary(
                _LEASE + "LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease), rpc.LeaseRevokeResponse
            )
        except LeaseLost:
            return
        self._revision(answer.message.header)

    def watch(self, prefix: str, *, after: int, mark: str = "") -> AsyncGenerator[Batch, None]:
        """Yield the changes under `prefix` after revision `after`, for ever; see `Store.watch`.

        Close the iterator (`contextlib.aclosing`) to end it.
        """
        reads = partial(self.get, mark) if mark else None
        return EtcdWatch(
            self._caller, self._list, prefix, after=after, cluster=self._cluster, mark=mark, read_mark=reads
        ).batches()

    async def _range(self, request: rpc.RangeRequest) -> rpc.RangeResponse:
        answer = await self._caller.unary(_KV + "Range", request, rpc.RangeResponse)
        self._revision(answer.message.header)
        return answer.message

    async def _list(self, prefix: str) -> tuple[Listing, int]:
        entries: list[Entry] = []
        revision = cluster = 0
        async with aclosing(self._pages(prefix)) as pages:
            async for page, from_cluster in pages:
                if page.begins:
                    entries.clear()
                entries.extend(page.entries)
                revision, cluster = page.revision, from_cluster
        return Listing(tuple(entries), revision), cluster

    async def _pages(self, prefix: str) -> AsyncGenerator[tuple[Page, int], None]:
        """Yield pages, each with the id of the cluster that it is from."""
        start, end = bytes_of(prefix) or b"\0", range_end(bytes_of(prefix))
        key, revision, cluster = start, 0, 0
        while True:
            request = rpc.RangeRequest(key=key, range_end=end, limit=_PAGE, revision=revision)
            try:
                found = await self._range(request)
            except RegistryRefused as error:
                # Compacted between two pages, or another registry answers now: begin anew.
                if revision and "required revision" in error.message:
                    key, revision = start, 0
                    continue
                raise
            if revision and found.header.cluster_id != cluster:
                key, revision = start, 0
                continue
            begins = not revision
            revision, cluster = revision or found.header.revision, found.header.cluster_id
            yield Page(tuple([entry_of(pair) for pair in found.kvs]), revision, begins), cluster
            if not found.more:
                return
            key = found.kvs[-1].key + b"\0"

    def _revision(self, header: rpc.ResponseHeader) -> int:
        self._cluster = header.cluster_id
        return header.revision


def _write(key: bytes, value: bytes | None, lease: int) -> rpc.RequestOp:
    if value is None:
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease))


def _compared(guard: Guard) -> list[rpc.Compare]:
    key, equal = bytes_of(guard.key), rpc.Compare.EQUAL
    if guard.lease is not None:
        return [rpc.Compare(key=key, target=rpc.Compare.LEASE, result=equal, lease=guard.lease)]
    if guard.seen is not None:
        # A key that does not exist has mod revision 0, which is before any.
        return [
            rpc.Compare(key=key, target=rpc.Compare.MOD, result=rpc.Compare.GREATER, mod_revision=0),
            rpc.Compare(key=key, target=rpc.Compare.MOD, result=rpc.Compare.LESS, mod_revision=guard.seen + 1),
        ]
    return [rpc.Compare(key=key, target=rpc.Compare.MOD, result=equal, mod_revision=guard.mod_revision or 0)]
