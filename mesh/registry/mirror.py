"""The watch-fed view: registry keys in, `ClusterView`s out.

Owns the decoding of watch batches and the publishing of views. Folding is `mesh.core.fold`'s, and which deletions to
believe after the registry was away is `mesh.core.grace`'s. Keys of other kinds (routes, the leader) are
passed over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Final

from mesh.api.clock import steady_s
from mesh.core.errors import MeshError
from mesh.core.fold import (
    Change,
    CopyChange,
    ForecastChange,
    ModelChange,
    NodeChange,
    PipelineChange,
    PlacementChange,
    SuspectChange,
    fold,
)
from mesh.core.grace import Grace
from mesh.core.lost import Lost
from mesh.core.sightings import Sightings
from mesh.core.suspects import Suspect
from mesh.core.view import ClusterView
from mesh.registry.keys import (
    COPIES,
    FORECAST,
    HISTORY,
    MODELS,
    NODES,
    PIPELINES,
    PLACEMENTS,
    ROOT,
    SUSPECTS,
    copy_key,
    model_key,
    node_key,
    pipeline_key,
    placement_key,
    split_copy_key,
    split_model_key,
    split_node_key,
    split_pipeline_key,
    suspect_key,
)
from mesh.registry.records import (
    BadRecord,
    decode_copy,
    decode_forecast,
    decode_model,
    decode_node,
    decode_pipeline,
    decode_placement,
    decode_suspect,
)
from mesh.registry.store import Batch, Event, Store
from mesh.registry.trouble import Trouble
from mesh.telemetry import logs

_log: Final = logs.get(__name__)
_MAX_BAD: Final = 1000
"""Bad keys remembered so that each is logged once; beyond it the memory starts anew."""


class Mirror:
    """Follows the registry and publishes `view`. Any number of waiters; each may be cancelled at any time.

    While the registry does not answer, the last view stays. `grace_s` is how long deletions of nodes are held back
    after it was away: twice the time in which a node registers again.
    """

    def __init__(self, store: Store, *, grace_s: float = 10.0) -> None:
        self.view = ClusterView()
        """The latest view; replaced, never changed."""
        self.on_changes: list[Callable[[Sequence[Change] | None], None]] = []
        """Called after each new view with what changed since the one before; None: it was read anew."""
        self._store = store
        self._grace = Grace(grace_s)
        self._synced = asyncio.Event()
        self._changed = asyncio.Event()
        self._bad: set[str] = set()
        self._sightings = Sightings()
        self.lost = Lost()
        """What another history of the registry lacks and is to be put back."""
        self.anew = asyncio.Event()
        """Set, and replaced, when the registry was found to have another history."""
        self._live = False
        self._why = "the registry was not read yet"

    def __repr__(self) -> str:
        """Show the view's counts."""
        return f"<Mirror live={self._live} {self.view!r} {self._grace!r} {self.lost!r}>"

    @property
    def live(self) -> bool:
        """Whether the registry answered last; false before the first listing and while the watch is lost."""
        return self._live

    @property
    def why(self) -> str:
        """What is wrong with the registry while it is not `live`; empty while it is. The view stays meanwhile."""
        return "" if self._live else self._why

    async def run(self) -> None:
        """Follow the registry for ever, whatever it says: what is wrong is logged once per reason, and tried again."""
        trouble = Trouble(lambda text: _log.warning("cannot read the registry", why=text))
        while True:
            try:
                first = await self._read()
            except MeshError as error:
                trouble.met(error)
                self._why = error.message
                await asyncio.sleep(max(0.1, trouble.pause_s))
            else:
                break
        self._live = True
        self._show(first)
        self._synced.set()
        held = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._release(held), name="mirror grace")
                async with aclosing(self._store.watch(ROOT, after=first.revision, mark=HISTORY)) as batches:
                    async for batch in batches:
                        self._apply(batch)
                        held.set()
        except ExceptionGroup as failed:
            # A caller wants to know what happened, not that two tasks were at work.
            raise failed.exceptions[0] from failed

    async def wait_synced(self) -> None:
        """Return when the first listing has been folded into `view`."""
        await self._synced.wait()

    async def next(self, seen: ClusterView) -> ClusterView:
        """Return the latest view as soon as it is not `seen`."""
        while self.view is seen:
            await self._changed.wait()
        return self.view

    async def wait_for(self, predicate: Callable[[ClusterView], bool]) -> ClusterView:
        """Return the first view, from the present one on, that `predicate` is true of. It sees the latest only."""
        view = self.view
        while not predicate(view):
            view = await self.next(view)
        return view

    async def _read(self) -> ClusterView:
        """Return what the registry holds. Read page by page: with many models, most of the bytes are soon forgotten."""
        view = ClusterView()
        async with aclosing(self._store.pages(ROOT)) as pages:
            async for page in pages:
                events = (Event(entry.key, entry) for entry in page.entries)
                changes = [change for event in events if (change := self._change(event)) is not None]
                view = fold(ClusterView() if page.begins else view, changes, page.revision)
        return view

    def _apply(self, batch: Batch) -> None:
        now_s = time.monotonic()
        if not batch.live:
            self._live, self._why = False, batch.why
            self._grace.lost()
            text = "the watch on the registry was lost; the last view stays"
            _log.warning(text, revision=batch.revision, why=batch.why)
            return
        if not self._live:
            _log.info("the registry is followed again", revision=batch.revision)
        self._live = True
        if batch.anew:
            # Also where the watch only went on elsewhere: nodes need their time to register again.
            self._grace.lost()
        self._grace.live(now_s)
        changes = [change for event in batch.events if (change := self._change(event)) is not None]
        self.lost.changed(changes)
        if batch.relisted:
            changes.extend(self.lost.listed(_absent(self.view, batch.events), anew=batch.anew))
        if batch.anew:
            _log.warning("the registry has lost what it held", revision=batch.revision, lost=len(self.lost.held))
            anew, self.anew = self.anew, asyncio.Event()
            anew.set()
        self._publish(self._grace.step(self.view, changes, now_s), batch.revision)

    def _publish(self, changes: tuple[Change, ...], revision: int) -> None:
        if not changes and revision == self.view.revision:
            return
        self._show(fold(self.view, changes, revision), changes)

    def _show(self, view: ClusterView, changes: Sequence[Change] | None = None) -> None:
        self.view = view
        for hear in self.on_changes:
            hear(changes)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _release(self, held: asyncio.Event) -> None:
        """Publish held deletions when their grace has passed."""
        while True:
            next_s = self._grace.next_s
            try:
                async with asyncio.timeout(None if next_s is None else max(0.0, next_s - time.monotonic())):
                    await held.wait()
                    held.clear()
            except TimeoutError:
                self._publish(self._grace.due(time.monotonic()), self.view.revision)

    def _change(self, event: Event) -> Change | None:
        """Return what an event means to the view; None for keys of other kinds and for bad records."""
        try:
            change = _decode(event)
        except ValueError as error:
            self._log_once(event.key, error)
            return None
        self._bad.discard(event.key)
        if isinstance(change, SuspectChange):
            if change.suspect is None:
                self._sightings.gone(change.key)
            else:
                change = SuspectChange(change.key, self.own(change.suspect))
        return change

    def own(self, suspect: Suspect) -> Suspect:
        """Return what a record says of a version that ended processes with times of this process's clock. O(1)."""
        return self._sightings.own(suspect, steady_s())

    def _log_once(self, key: str, error: ValueError) -> None:
        if key in self._bad:
            return
        if len(self._bad) >= _MAX_BAD:
            self._bad.clear()
        self._bad.add(key)
        _log.warning("skipped a bad record in the registry", key=key, error=str(error))


def _decode(event: Event) -> Change | None:
    """Return what an event means. Raises ValueError (`BadRecord` among them) for a wrong key or value."""
    key, value = event.key, event.entry.value if event.entry is not None else None
    for prefix, read in _KINDS:
        if key.startswith(prefix):
            return read(key, value)
    return None


def _model(key: str, value: bytes | None) -> Change:
    model = decode_model(value) if value is not None else None
    named = split_model_key(key)
    _agree(key, model_key(*(named if model is None else (model.name, model.version))))
    return ModelChange(named, model)


def _copy(key: str, value: bytes | None) -> Change:
    on, held = split_copy_key(key)
    copy = decode_copy(value) if value is not None else None
    _agree(key, copy_key(on, held if copy is None else (copy.model, copy.version)))
    return CopyChange(on, held, copy)


def _placement(key: str, value: bytes | None) -> Change:
    placement = decode_placement(value) if value is not None else None
    named = split_model_key(key, PLACEMENTS)
    _agree(key, placement_key(*(named if placement is None else (placement.model, placement.version))))
    return PlacementChange(named, placement)


def _node(key: str, value: bytes | None) -> Change:
    id_ = split_node_key(key)
    node = decode_node(value) if value is not None else None
    _agree(key, node_key(id_ if node is None else node.id))
    return NodeChange(id_, node)


def _pipeline(key: str, value: bytes | None) -> Change:
    name = split_pipeline_key(key)
    pipeline = decode_pipeline(value) if value is not None else None
    _agree(key, pipeline_key(name if pipeline is None else pipeline.name))
    return PipelineChange(name, pipeline)


def _suspect(key: str, value: bytes | None) -> Change:
    suspect = decode_suspect(value) if value is not None else None
    named = split_model_key(key, SUSPECTS)
    _agree(key, suspect_key(*(named if suspect is None else (suspect.model, suspect.version))))
    return SuspectChange(named, suspect)


def _forecast(key: str, value: bytes | None) -> Change:
    _agree(key, FORECAST)
    return ForecastChange(decode_forecast(value) if value is not None else None)


_KINDS: Final[tuple[tuple[str, Callable[[str, bytes | None], Change]], ...]] = (
    (MODELS, _model),
    (COPIES, _copy),
    (PLACEMENTS, _placement),
    (NODES, _node),
    (PIPELINES, _pipeline),
    (FORECAST, _forecast),
    (SUSPECTS, _suspect),
)


def _agree(key: str, named: str) -> None:
    if key != named:
        raise BadRecord(f"expected a record of key {key!r}, got the record of {named!r}")


def _absent(view: ClusterView, events: Iterable[Event]) -> list[Change]:
    """Return the deletions of what `view` holds and a full listing does not."""
    present = {event.key for event in events}
    changes: list[Change] = [NodeChange(id_, None) for id_ in view.nodes if node_key(id_) not in present]
    changes.extend(
        CopyChange(id_, key, None)
        for id_, copies in view.held.items()
        for key in copies
        if copy_key(id_, key) not in present
    )
    changes.extend(
        ModelChange((name, version), None)
        for name, held in view.models.items()
        for version in held
        if model_key(name, version) not in present
    )
    changes.extend(PipelineChange(name, None) for name in view.pipelines if pipeline_key(name) not in present)
    changes.extend(SuspectChange(key, None) for key in view.suspects if suspect_key(*key) not in present)
    changes.extend(PlacementChange(key, None) for key in view.placements if placement_key(*key) not in present)
    return changes
