"""The seam to the registry: what the mesh needs of an etcd v3, as a Protocol.

`etcd_client` is its implementation, and it talks to a real etcd and to the embedded store alike: both speak etcd's own
gRPC API. Keys are text, values bytes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value and its revisions."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int
    """Lease id; 0 for none."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All entries of a prefix, in key order, as of `revision`."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries of a prefix; all pages since the one that `begins` are as of the same `revision`, in key order."""

    entries: tuple[Entry, ...]
    revision: int
    begins: bool
    """It is the first. When history went between two pages, another first one follows: forget those before."""


@dataclass(frozen=True, slots=True)
class Event:
    """One key changed: `entry` is its new state, None when it was deleted."""

    key: str
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Batch:
    """What a watch yields.

    With `relisted` false, `events` happened after the batch before, in order, ending at `revision`. With `relisted`
    true the watch could not resume (a compaction took the history): `events` are all keys of the prefix as of
    `revision`, and every key that is not among them is gone.

    With `live` false the watch has just lost the registry, or is lost for another reason than before, and `events` is
    empty; the next batch with `live` true says that it is back (it may be empty too).
    """

    events: tuple[Event, ...]
    revision: int
    relisted: bool = False
    anew: bool = False
    """With `relisted`: the registry has another history than before. It was wiped, or restored from a backup."""
    live: bool = True
    why: str = ""
    """What the registry said, where `live` is false."""


MAX_WRITES: Final = 128
"""Keys in one transaction: etcd's --max-txn-ops unless it is told otherwise."""


MAX_WRITE_BYTES: Final = 512 * 1024
"""Bytes of values in one transaction, far under etcd's --max-request-bytes of 1.5 MiB."""


def batches(changes: Mapping[str, bytes | None]) -> Iterator[dict[str, bytes | None]]:
    """Yield `changes` in their order, in parts that fit into one `Store.write` each."""
    batch: dict[str, bytes | None] = {}
    size = 0
    for key, value in changes.items():
        more = len(key) + len(value or b"")
        if len(batch) == MAX_WRITES or (batch and size + more > MAX_WRITE_BYTES):
            yield batch
            batch, size = {}, 0
        batch[key] = value
        size += more
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class Guard:
    """What must hold for a write to happen: where `key` stands. One of the three is given."""

    key: str
    mod_revision: int | None = None
    """0: it does not exist."""
    lease: int | None = None
    seen: int | None = None
    """It exists, and nobody wrote it after this revision: what was seen there then is what is there."""


class Store(Protocol):
    """Calls on the registry.

    Each raises `RegistryUnavailable` when no endpoint answers within its timeout (a write may then have happened or
    not), and `RegistryRefused` when the registry says no.
    """

    async def get(self, key: str) -> Entry | None:
        """Return the entry of `key`, None when there is none."""

    async def list(self, prefix: str) -> Listing:
        """Return all entries under `prefix`."""

    def pages(self, prefix: str) -> AsyncGenerator[Page, None]:
        """Yield all entries under `prefix`, so that they need not be in memory at once."""

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write `key` whatever it holds; return the new revision. Raises `LeaseLost` for an unknown lease."""

    async def replace(self, key: str, value: bytes | None, *, expected: int, lease: int = 0) -> int | None:
        """Compare-and-swap: write `key` (None deletes it) if its mod revision is `expected` (0: it must not exist).

        Returns the new revision, or None when somebody else was first. Raises `LeaseLost` for an unknown lease.
        """

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

    async def count(self, prefix: str) -> int:
        """Return the number of keys under `prefix`."""

    async def compact(self, revision: int) -> None:
        """Forget what was before `revision`; one that is forgotten already is fine."""

    async def delete(self, key: str) -> bool:
        """Delete `key`; tell whether it was there."""

    async def grant(self, ttl_s: int) -> int:
        """Return the id of a new lease of `ttl_s` seconds."""

    async def keep_alive(self, lease: int) -> float:
        """Renew `lease` once; return its time to live in seconds. Raises `LeaseLost` when it is gone."""

    async def revoke(self, lease: int) -> None:
        """End `lease` and delete its keys; a lease that is gone already is fine."""

    def watch(self, prefix: str, *, after: int, mark: str = "") -> AsyncGenerator[Batch, None]:
        """Yield the changes under `prefix` after revision `after`, for ever.

        Resumes from the last revision after a lost connection (on another endpoint where there is one) and re-lists
        after a compaction. Raises no error of the registry: it waits and tries again with backoff, also when it is not
        permitted to watch, as it may be again. `mark` is a key under `prefix` whose value names the registry's history:
        where that is another one than before, it re-lists as well, however many revisions there are.
        Close the generator (`contextlib.aclosing`) to end the watch at once.
        """
