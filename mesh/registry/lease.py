"""`Presence`: a key, and others that belong to it, in the registry for as long as their process runs.

Owns the lease, the registering, the keeping alive, and the registering again after whatever took keys away (an expired
lease, a restarted or wiped registry, a deletion by hand). What the values say is their owner's affair. The first key
says whose the others are: they are written only while it is under this process's lease. The lease is renewed beside the
writes: a registry that takes no writes for a time (it is full) must not lose who is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from mesh.core.errors import Conflict, LeaseLost, MeshError
from mesh.registry.asides import Asides
from mesh.registry.keys import NODES, split_node_key
from mesh.registry.records import BadRecord, decode_node
from mesh.registry.store import MAX_WRITES, Entry, Guard, Store, batches
from mesh.registry.trouble import Trouble

_SPACING_S: Final = 0.02
"""Least time between two writes of the value: a burst of publishes costs at most fifty writes a second."""
_POLL_S: Final = 0.2
"""How often a key that somebody else holds is looked at."""
_MARGIN: Final = 0.1
"""Part of the lease's time given up at its end, for a loop that wakes late and clocks that drift."""
_PREDECESSOR_S: Final = 2.0
"""etcd looks for expired leases every 0.5 s and raises short ones to 2 s, so a dead holder's key lives that longer."""


class Presence:
    """Keeps `key`, and what belongs to it under `prefix`, as published last while `run` runs.

    `is_mine` tells from a value whether this process wrote it; `on_event` is told a sentence when something happens
    that an operator may want to know. `on_change` is called when `held` changes.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        *,
        prefix: str = "",
        ttl_s: int,
        is_mine: Callable[[bytes], bool],
        on_event: Callable[[str], None],
    ) -> None:
        self._store = store
        self._key = key
        self._prefix = prefix
        self._ttl_s = ttl_s
        self._is_mine = is_mine
        self._on_event = on_event
        self._value: bytes | None = None
        self._written: bytes | None = None
        self._wanted: dict[str, bytes] = {}
        """The keys under `prefix` as they should be, and `_kept` as they were written last."""
        self._kept: dict[str, bytes] = {}
        self._differs: set[str] = set()
        """The keys of which `_wanted` and `_kept` may differ: with thousands of them, only these are looked at."""
        self._asides = Asides(store)
        self._written_s = float("-inf")
        self._revision = 0
        self._lease = 0
        self._until_s = float("-inf")
        self._there = False
        """Whether the key is in the registry under this lease, as far as it was seen or written there."""
        self._was_held = False
        self._expiry: asyncio.TimerHandle | None = None
        self._writing = Trouble(lambda text: on_event(f"{key} cannot be written: {text}"))
        self._renewing = Trouble(lambda text: on_event(f"{key} is not kept alive: {text}"))
        self._writes = 0
        self.on_change: Callable[[], None] = lambda: None
        self._granted = asyncio.Event()
        self._published = asyncio.Event()
        self._registered = asyncio.Event()
        self._withdrawn = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Show where the key stands."""
        counts = f"kept={len(self._kept)} lease={self._lease:x} writes={self._writes}"
        return f"<Presence {self._key} held={self.held} {counts}>"

    @property
    def held(self) -> bool:
        """Whether the key is registered: its lease cannot have ended, by this process's own clock. O(1)."""
        return self._there and time.monotonic() < self._until_s

    @property
    def why(self) -> str:
        """What keeps this process from being registered, or its record from being written; empty: nothing."""
        return self._writing.why or self._renewing.why

    def publish(self, value: bytes, belongings: Mapping[str, bytes] | None = None) -> None:
        """Make `value` the key's value, and `belongings` the keys under `prefix` with theirs.

        `run` writes what changed soon, and only the latest of a burst.
        """
        wanted = belongings or {}
        gone = dict.fromkeys(self._wanted.keys() - wanted.keys())
        self.change(value, {**gone, **wanted})

    def change(self, value: bytes, changes: Mapping[str, bytes | None]) -> None:
        """Make `value` the key's value, and change these keys under `prefix`, None: it goes. O(changes).

        `run` writes it soon, and only the latest of a burst.
        """
        self._value = value
        for key, said in changes.items():
            if said is None:
                self._wanted.pop(key, None)
            else:
                self._wanted[key] = said
        self._differs.update(changes)
        self._published.set()

    def along(self, key: str, value: bytes, *, seen: int) -> asyncio.Future[bool]:
        """Write `key`, which belongs to no lease, in one transaction with what is published next.

        Only if it exists and nobody wrote it after revision `seen`. What this returns tells whether it was written;
        False may be wrong where the registry did not answer.
        """
        return self._asides.add(key, value, seen=seen)

    async def registered(self) -> None:
        """Return when the key has been written for the first time."""
        await self._registered.wait()

    async def run(self) -> None:
        """Keep the key registered until `withdraw`.

        Never gives up on a registry that does not answer. Raises `Conflict` when another live process holds the key
        before this one ever did; one that takes it later is waited for, as whoever serves is not to end for that.
        """
        if self._running is not None:
            raise RuntimeError(f"expected one run of the presence of {self._key}, it runs already")
        self._running = asyncio.create_task(self._keep(), name=f"presence {self._key}")
        renewing = asyncio.create_task(self._renew(), name=f"presence lease {self._key}")
        leaving = asyncio.create_task(self._withdrawn.wait())
        try:
            await asyncio.wait((self._running, leaving), return_when=asyncio.FIRST_COMPLETED)
            if self._running.done() and not self._running.cancelled():
                self._running.result()
        finally:
            for task in (leaving, renewing, self._running):
                task.cancel()
            await asyncio.gather(self._running, renewing, leaving, return_exceptions=True)
            self._running = None
            if self._expiry is not None:
                self._expiry.cancel()

    async def withdraw(self) -> None:
        """Stop `run` and revoke the lease, so that the key vanishes at once. Idempotent.

        When the registry does not answer, the key vanishes with its lease after at most `ttl_s`.
        """
        self._withdrawn.set()
        if self._running is not None:
            # Nothing may be written after the lease is revoked: `run` cancels the same task and reports its end.
            self._running.cancel()
            await asyncio.wait((self._running,))
        lease, self._lease = self._lease, 0
        self._set(there=False)
        if lease:
            try:
                await self._store.revoke(lease)
            except MeshError as error:
                self._on_event(f"could not withdraw {self._key}, it goes with its lease: {error.message}")

    async def _keep(self) -> None:
        await self._published.wait()
        while True:
            try:
                if self._written is None:
                    await self._register()
                await self._hold()
            except LeaseLost:
                self._lost(self._lease)
            except Conflict:
                raise
            except MeshError as error:
                self._writing.met(error)
            await asyncio.sleep(self._writing.pause_s)

    async def _renew(self) -> None:
        """Keep the lease alive, whatever becomes of the writes."""
        while True:
            lease, asked_s = self._lease, time.monotonic()
            if not lease:
                await self._granted.wait()
                self._granted.clear()
                continue
            try:
                left_s = await self._store.keep_alive(lease)
            except LeaseLost:
                self._lost(lease)
            except MeshError as error:
                self._renewing.met(error)
                await asyncio.sleep(min(self._renewing.pause_s, self._ttl_s / 10))
            else:
                self._renewing.over()
                self._extend(asked_s, left_s)
                await asyncio.sleep(max(0.0, asked_s + self._ttl_s / 3 - time.monotonic()))

    def _lost(self, lease: int) -> None:
        if lease and lease == self._lease:
            self._on_event(f"the lease of {self._key} was lost; registering again")
            self._lease, self._until_s = 0, float("-inf")
        self._written = None
        self._set(there=False)
        self._published.set()

    def _extend(self, asked_s: float, left_s: float) -> None:
        """Take that the lease was alive for `left_s` when it was `asked_s`, or later."""
        self._until_s = asked_s + left_s * (1.0 - _MARGIN)
        if self._expiry is not None:
            self._expiry.cancel()
        wait_s = max(0.0, self._until_s - time.monotonic())
        self._expiry = asyncio.get_running_loop().call_later(wait_s, self._look)
        self._look()

    def _set(self, *, there: bool) -> None:
        self._there = there
        self._look()

    def _look(self) -> None:
        if self._was_held is not self.held:
            self._was_held = self.held
            self.on_change()

    async def _register(self) -> None:
        """Write the key by compare-and-swap. Raises `Conflict` when somebody else keeps it, the first time alone."""
        foreign_since_s: float | None = None
        while True:
            entry = await self._store.get(self._key)
            self._set(there=entry is not None and entry.lease == self._lease != 0)
            if entry is not None and not self._is_mine(entry.value):
                now_s = time.monotonic()
                if foreign_since_s is None:
                    foreign_since_s = now_s
                    self._on_event(f"{_taken(entry)}; waiting for it to go")
                elif not self._registered.is_set() and now_s - foreign_since_s > self._ttl_s + _PREDECESSOR_S:
                    raise Conflict(f"{_taken(entry)}; give this node another --id or stop the other one")
                await asyncio.sleep(_POLL_S)
                continue
            if await self._write_first(entry.mod_revision if entry is not None else 0):
                # What lies there may be a dead process's, or this one's of before: all of it is written anew.
                left = await self._store.list(self._prefix) if self._prefix else None
                self._kept = {entry.key: b"" for entry in left.entries} if left is not None else {}
                self._differs = self._kept.keys() | self._wanted.keys()
                self._published.set()
                self._registered.set()
                return

    async def _write_first(self, expected: int) -> bool:
        """Write the key's latest value if it still is at `expected`; tell whether it was."""
        if not self._lease:
            asked_s = time.monotonic()
            self._lease = await self._store.grant(self._ttl_s)
            self._extend(asked_s, self._ttl_s)
            self._granted.set()
        self._published.clear()
        value, lease = self._value, self._lease
        assert value is not None
        try:
            revision = await self._store.replace(self._key, value, expected=expected, lease=lease)
        except BaseException:
            # It may have been written or not: the value must be looked at and written again.
            self._published.set()
            self._written = None
            raise
        self._written_s = time.monotonic()
        if revision is None or lease != self._lease:
            self._published.set()
            self._written = None
            return False
        self._written, self._revision, self._writes = value, revision, self._writes + 1
        self._set(there=True)
        return True

    async def _write(self) -> bool:
        """Write what changed, as long as the key is under this lease; tell whether it was.

        The key goes with the first of its belongings, so that what it says of them is true.
        """
        self._published.clear()
        value, wanted, lease = self._value, self._wanted, self._lease
        assert value is not None
        changes: dict[str, bytes | None] = {} if value == self._written else {self._key: value}
        # Deletions first: a device's memory is free before it is taken again.
        differs = [key for key in self._differs if self._kept.get(key) != wanted.get(key)]
        changes.update((key, None) for key in differs if key not in wanted)
        changes.update((key, wanted[key]) for key in differs if key in wanted)
        self._differs.clear()
        asides = self._asides.take()
        if len(self._asides):
            self._published.set()
        parts = list(batches(changes))
        if asides and (not parts or len(parts[-1]) + len(asides) > MAX_WRITES):
            parts.append({})
        mine = Guard(self._key, lease=lease)
        try:
            for batch in parts:
                revision = await self._asides.write(batch, asides if batch is parts[-1] else {}, mine=mine, lease=lease)
                if revision is None:
                    self._published.set()
                    self._written = None
                    return False
                self._note(batch, revision)
        except BaseException:
            # It may have been written or not: everything must be looked at and written again.
            self._published.set()
            self._written = None
            raise
        finally:
            for aside in asides.values():
                aside.tell(written=False)
        self._written_s = time.monotonic()
        return True

    def _note(self, batch: Mapping[str, bytes | None], revision: int) -> None:
        self._writes += 1
        for key, value in batch.items():
            if key == self._key:
                self._written, self._revision = value, revision
            elif value is None:
                self._kept.pop(key, None)
            else:
                self._kept[key] = value
            if key != self._key and self._wanted.get(key) != value:
                self._differs.add(key)  # It was changed while it was written.

    async def _hold(self) -> None:
        """Keep the value fresh. Returns when the key is no longer as it was written."""
        while self._written is not None:
            look_s = time.monotonic() + self._ttl_s / 3
            entry = await self._store.get(self._key)
            self._set(there=entry is not None and entry.lease == self._lease != 0)
            if entry is None or entry.mod_revision != self._revision or entry.lease != self._lease:
                self._on_event(f"{self._key} was changed or deleted by somebody else; registering again")
                self._written = None
                return
            self._writing.over()
            if self._prefix and await self._store.count(self._prefix) != len(self._kept):
                self._on_event(f"keys under {self._prefix} were changed by somebody else; writing them again")
                self._written = None
                return
            while (left_s := look_s - time.monotonic()) > 0:
                try:
                    async with asyncio.timeout(left_s):
                        await self._published.wait()
                        await asyncio.sleep(max(0.0, self._written_s + _SPACING_S - time.monotonic()))
                except TimeoutError:
                    break
                if self._written is None or not await self._write():
                    return


def _taken(entry: Entry) -> str:
    """Say who holds a key that is not ours."""
    if not entry.key.startswith(NODES):
        return f"key {entry.key!r} is taken by another process"
    node = split_node_key(entry.key)
    try:
        record = decode_node(entry.value)
    except BadRecord:
        return f"node id {node!r} is taken by a record that cannot be read"
    return f"node id {node!r} is taken by the process at {record.address} (incarnation {record.incarnation})"
