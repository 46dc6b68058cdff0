"""The watches of one stream to the embedded registry. No I/O.

Owns where each watch stands in the shared history and what to send next. A watch holds a position, never a queue: a
slow reader costs nothing, and one that falls behind the compacted history is told so and ended, as etcd does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mesh.api.gen.etcd import rpc_pb2 as rpc
from mesh.registry.embedded_state import Keys, is_put

_MAX_REVISIONS: Final = 1000
"""Revisions looked at for one response, as etcd does it."""
_MAX_BYTES: Final = 1024 * 1024
"""A response ends after the revision that takes it over this: with etcd's 1.5 MiB per request it stays under gRPC's
default limit of 4 MiB."""


@dataclass(slots=True)
class _Watcher:
    id: int
    key: bytes
    range_end: bytes
    next_revision: int
    """The first revision that was not looked at."""
    prev_kv: bool
    progress: bool
    no_put: bool
    no_delete: bool
    idle: bool = False
    """Nothing was sent since the last progress tick."""

    def wants(self, change: rpc.KeyValue) -> bool:
        if self.no_put if is_put(change) else self.no_delete:
            return False
        if not self.range_end:
            return change.key == self.key
        return change.key >= self.key and (self.range_end == b"\0" or change.key < self.range_end)


class Watchers:
    """The watches of one stream. `handle` what the client sends, then send what `ready` gives until it gives none."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._watchers: dict[int, _Watcher] = {}
        self._next_id = 0
        self._progress_wanted = False

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Watchers {len(self._watchers)} of={self._keys!r}>"

    def handle(self, request: rpc.WatchRequest) -> rpc.WatchResponse | None:
        """Take a request of the client; return its answer if it has one."""
        match request.WhichOneof("request_union"):
            case "create_request":
                return self._create(request.create_request)
            case "cancel_request":
                id_ = request.cancel_request.watch_id
                return self._response(id_, canceled=True) if self._watchers.pop(id_, None) else None
            case "progress_request":
                self._progress_wanted = True
        return None

    def ready(self) -> list[rpc.WatchResponse]:
        """Return the next responses, at most one per watch; none when all watches are up to date. O(watches)."""
        responses = [
            response for each in list(self._watchers.values()) if (response := self._advance(each)) is not None
        ]
        if self._progress_wanted and all(each.next_revision > self._keys.revision for each in self._watchers.values()):
            self._progress_wanted = False
            responses.append(self._response(-1))
        return responses

    def tick(self) -> list[rpc.WatchResponse]:
        """Return the progress notifications of watches that asked for them and had nothing since the last tick."""
        responses = []
        for each in self._watchers.values():
            if each.progress and each.idle and each.next_revision > self._keys.revision:
                responses.append(self._response(each.id))
            each.idle = True
        return responses

    def _create(self, request: rpc.WatchCreateRequest) -> rpc.WatchResponse:
        key = request.key or b"\0"
        if len(request.range_end) > 0 and request.range_end != b"\0" and key >= request.range_end:
            return self._refused("mvcc: watcher range is empty")
        id_ = request.watch_id
        if not id_:
            while self._next_id in self._watchers:
                self._next_id += 1
            id_ = self._next_id
            self._next_id += 1
        elif id_ in self._watchers:
            return self._refused("mvcc: duplicate watch ID provided on the WatchStream")
        self._watchers[id_] = _Watcher(
            id=id_,
            key=key,
            range_end=request.range_end,
            next_revision=request.start_revision or self._keys.revision + 1,
            prev_kv=request.prev_kv,
            progress=request.progress_notify,
            no_put=rpc.WatchCreateRequest.NOPUT in request.filters,
            no_delete=rpc.WatchCreateRequest.NODELETE in request.filters,
        )
        return self._response(id_, created=True)

    def _advance(self, watcher: _Watcher) -> rpc.WatchResponse | None:
        """Look at history from where `watcher` stands; return a response when something in it is wanted."""
        revision = self._keys.revision
        while watcher.next_revision <= revision:
            if watcher.next_revision < self._keys.compacted:
                del self._watchers[watcher.id]
                return rpc.WatchResponse(
                    header=rpc.ResponseHeader(),
                    watch_id=watcher.id,
                    canceled=True,
                    compact_revision=self._keys.compacted,
                )
            response = self._response(watcher.id)
            size = 0
            last = min(revision, watcher.next_revision + _MAX_REVISIONS - 1)
            for at in range(watcher.next_revision, last + 1):
                for change in self._keys.changes(at):
                    if watcher.wants(change):
                        size += self._add(response, watcher, change)
                watcher.next_revision = at + 1
                if size > _MAX_BYTES:
                    break
            if response.events:
                watcher.idle = False
                return response
        return None

    def _add(self, response: rpc.WatchResponse, watcher: _Watcher, change: rpc.KeyValue) -> int:
        event = response.events.add(type=rpc.Event.PUT if is_put(change) else rpc.Event.DELETE, kv=change)
        created = is_put(change) and change.create_revision == change.mod_revision
        if watcher.prev_kv and not created and change.mod_revision - 1 >= self._keys.compacted:
            before = self._keys.at(change.key, change.mod_revision - 1)
            if before is not None:
                event.prev_kv.CopyFrom(before)
        return event.ByteSize()

    def _refused(self, reason: str) -> rpc.WatchResponse:
        return self._response(-1, created=True, canceled=True, reason=reason)

    def _response(
        self, id_: int, *, created: bool = False, canceled: bool = False, reason: str = ""
    ) -> rpc.WatchResponse:
        header = rpc.ResponseHeader(revision=self._keys.revision)
        return rpc.WatchResponse(header=header, watch_id=id_, created=created, canceled=canceled, cancel_reason=reason)
