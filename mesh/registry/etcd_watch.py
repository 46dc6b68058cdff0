"""A watch that goes on for ever: resumes on another endpoint after a loss, lists again where history is gone.

Owns the watch stream's protocol and the choice between resuming and listing again. Calls and endpoints are
`etcd_calls`'s affair.

History is gone when etcd compacted it. It is another one when the cluster has another id than before, its revision went
back, or the mark that names it is another or none (a registry that was wiped, or an embedded one that restarted). The
mark decides where the others do not: an etcd whose data was deleted has its old id, and may have more revisions by now.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

import grpc
from grpc.aio import EOF  # type: ignore[attr-defined]  # grpc-stubs lack it

from mesh.api.gen.etcd import rpc_pb2 as rpc
from mesh.core.errors import Code, MeshError, RegistryUnavailable
from mesh.registry.etcd_calls import Caller
from mesh.registry.etcd_errors import error_of, facts_of
from mesh.registry.store import Batch, Entry, Event, Listing
from mesh.registry.trouble import Trouble

PATH: Final = "/etcdserverpb.Watch/Watch"


def range_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that start with `prefix`; etcd's "no end" when there is none above."""
    for index in range(len(prefix) - 1, -1, -1):
        if prefix[index] < 0xFF:
            return prefix[:index] + bytes([prefix[index] + 1])
    return b"\0"


def entry_of(pair: rpc.KeyValue) -> Entry:
    """Return etcd's pair as our entry."""
    return Entry(text_of(pair.key), pair.value, pair.create_revision, pair.mod_revision, pair.version, pair.lease)


def text_of(key: bytes) -> str:
    """Return a key as text that encodes back to the same bytes, whatever they are."""
    return key.decode("utf-8", "surrogateescape")


def bytes_of(key: str) -> bytes:
    """Return the inverse of `text_of`."""
    return key.encode("utf-8", "surrogateescape")


class EtcdWatch:
    """One watch on the keys under `prefix`, from after revision `after`."""

    def __init__(
        self,
        caller: Caller,
        relist: Callable[[str], Awaitable[tuple[Listing, int]]],
        prefix: str,
        *,
        after: int,
        cluster: int,
        mark: str = "",
        read_mark: Callable[[], Awaitable[Entry | None]] | None = None,
    ) -> None:
        """`relist` gives a listing and its cluster id; `cluster` is the one `after` belongs to, 0 when not known.

        `read_mark` gives the key `mark`.
        """
        self._caller = caller
        self._relist = relist
        self._prefix = prefix
        self._seen = after
        self._cluster = cluster
        self._mark = mark
        self._read_mark = read_mark
        self._marked: bytes | None = None
        """The mark's value; None as long as there was none."""
        self._live = True
        self._trouble = Trouble(lambda _: None)

    def __repr__(self) -> str:
        """Show where the watch stands."""
        return f"<EtcdWatch {self._prefix} seen={self._seen} live={self._live} {self._trouble!r}>"

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield batches for ever. Raises no error of the registry: a batch says what is wrong."""
        while True:
            try:
                async with aclosing(self._session()) as session:
                    async for batch in session:
                        self._seen, self._live = batch.revision, True
                        self._trouble.over()
                        yield batch
                continue
            except MeshError as error:
                lost = error
            except grpc.aio.AioRpcError as error:
                lost = error_of(Code(error.code().value[0]), error.details() or "")
            if self._trouble.met(lost) or self._live:
                self._live = False
                yield Batch((), self._seen, live=False, why=lost.message)
            await asyncio.sleep(self._trouble.pause_s)

    async def _session(self) -> AsyncGenerator[Batch, None]:
        """Yield what one stream brings. Returns when the watch must be asked for anew at once."""
        call, endpoint = await self._caller.open(PATH, rpc.WatchRequest, rpc.WatchResponse)
        try:
            created = await self._create(call)
            marked_anew = await self._is_marked_anew()
            if marked_anew or created.header.cluster_id != self._cluster != 0 or created.header.revision < self._seen:
                listing, cluster = await self._relist(self._prefix)
                # A member that lags behind is no loss: the listing is as new as the whole cluster.
                if marked_anew or cluster != self._cluster or listing.revision < self._seen:
                    self._cluster = cluster
                    yield self._relisted(listing, anew=True)
                    return
            self._cluster = created.header.cluster_id
            if not self._live:
                yield Batch((), self._seen)
            self._trouble.over()
            async with aclosing(self._responses(call)) as responses:
                async for batch in responses:
                    yield batch
        except (grpc.aio.AioRpcError, MeshError):
            # Another member may do what this one does not, and one that refuses is none the better for being kept.
            self._caller.leave(endpoint)
            raise
        finally:
            call.cancel()

    async def _is_marked_anew(self) -> bool:
        """Tell whether the mark is another one than before. Notes the first one that is read."""
        if self._read_mark is None:
            return False
        entry = await self._read_mark()
        found = entry.value if entry is not None else None
        if self._marked is None:
            self._marked = found
        return found != self._marked

    def _note(self, key: bytes, entry: Entry | None) -> None:
        """Take the mark from a change, or from a listing."""
        if entry is not None and self._mark and key == bytes_of(self._mark):
            self._marked = entry.value

    def _relisted(self, listing: Listing, *, anew: bool) -> Batch:
        if anew:
            self._marked = None
        for entry in listing.entries:
            if entry.key == self._mark:
                self._marked = entry.value
        events = tuple(Event(entry.key, entry) for entry in listing.entries)
        return Batch(events, listing.revision, relisted=True, anew=anew)

    async def _create(self, call: Any) -> rpc.WatchResponse:
        key = bytes_of(self._prefix)
        request = rpc.WatchCreateRequest(
            key=key or b"\0",
            range_end=range_end(key),
            start_revision=self._seen + 1,
            progress_notify=True,
            fragment=True,
        )
        try:
            async with asyncio.timeout(self._caller.share_s):
                await call.write(rpc.WatchRequest(create_request=request))
                return await _read(call)
        except TimeoutError as error:
            raise RegistryUnavailable(f"expected a watch on {self._prefix!r}, etcd did not answer in time") from error

    async def _responses(self, call: Any) -> AsyncGenerator[Batch, None]:
        """Yield a batch per whole response. Returns after a compaction's re-list."""
        pending: list[Event] = []
        last = self._seen
        while True:
            response = await _read(call)
            if response.canceled:
                if not response.compact_revision:
                    raise _ended(response)
                before, (listing, self._cluster) = self._cluster, await self._relist(self._prefix)
                yield self._relisted(listing, anew=self._cluster != before != 0)
                return
            for event in response.events:
                last = max(last, event.kv.mod_revision)
                entry = entry_of(event.kv) if event.type == rpc.Event.PUT else None
                self._note(event.kv.key, entry)
                pending.append(Event(text_of(event.kv.key), entry))
            if response.fragment:
                continue
            if not response.events:
                # A progress notification: everything up to its revision has been sent.
                last = max(last, response.header.revision)
            yield Batch(tuple(pending), last)
            pending.clear()


async def _read(call: Any) -> rpc.WatchResponse:
    response = await call.read()
    if response is EOF:
        raise RegistryUnavailable("expected a response on the watch, etcd ended the stream", facts=facts_of("ended"))
    if response.created and response.canceled:
        raise _ended(response)
    return response  # type: ignore[no-any-return]


def _ended(response: rpc.WatchResponse) -> MeshError:
    """Return why etcd ended a watch. It says so in a text alone, which holds the text of one of its errors."""
    return error_of(Code.UNKNOWN, response.cancel_reason or "the watch was ended without a reason")
