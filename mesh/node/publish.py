"""Keeping the registry's model records true to the repositories on disk.

A node writes the versions under its own roots, and removes those whose folder is gone. What cannot be read just now
(a share that is away, a model.yaml half written) stays as it was published. Several nodes may read the same
repository: they find the same and write once. Writes are compare-and-swap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mesh.core.errors import MeshError
from mesh.core.types import ModelVersion, TensorSpec
from mesh.core.view import VersionKey
from mesh.node.folder import shown
from mesh.node.repository import Scanner, folder_of
from mesh.registry import records
from mesh.registry.keys import model_key
from mesh.registry.mirror import Mirror
from mesh.registry.store import Entry, Guard, Store, batches
from mesh.telemetry import logs

log = logs.get(__name__)

AGAIN_S: Final = 1.0
"""Pause after a scan that failed."""

TOLD: Final = 64
"""Refused folders in a node's record, with up to 300 characters each: it is written whole whenever anything in it
changes. Those beyond are in the node's log."""


@dataclass(slots=True)
class Changes:
    """What a scan changed in the registry, as "name/version"."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Found:
    """How the repositories differ from the registry."""

    refused: Mapping[str, str]
    fresh: dict[VersionKey, ModelVersion] = field(default_factory=dict)
    changed: dict[VersionKey, ModelVersion] = field(default_factory=dict)
    gone: list[VersionKey] = field(default_factory=list)


class Publisher:
    """Scans and writes. One scan at a time."""

    def __init__(self, scanner: Scanner, store: Store, mirror: Mirror) -> None:
        self._scanner = scanner
        self._store = store
        self._mirror = mirror
        self._scanning = asyncio.Lock()
        self._refused: Mapping[str, str] = {}
        self.kinds: frozenset[str] = frozenset()
        """The runtimes of what the repositories hold."""
        self._scanned = asyncio.Event()
        self.refused: Mapping[str, str] = {}
        """Folders that cannot be served, as callers know them ("model" or "model/version") -> why. At most `TOLD`."""
        self.on_refused: Callable[[], None] = lambda: None
        """Called when `refused` became another one."""

    async def run(self, poll_s: float) -> None:
        """Scan every `poll_s` seconds, for ever; with 0 once. A scan that fails is logged and made again."""
        while True:
            again_s = poll_s
            try:
                await self.scan()
            except MeshError as error:
                log.warning("could not publish the repository", error=error.message)
                again_s = AGAIN_S
            except Exception:
                # Whatever is wrong with a folder or a record, the node serves the others.
                log.exception("could not publish the repository")
                again_s = max(AGAIN_S, poll_s)
            self._scanned.set()
            if not again_s:
                return
            await asyncio.sleep(again_s)

    async def scanned(self) -> None:
        """Return when the repositories were read once, whether or not that worked."""
        await self._scanned.wait()

    async def scan(self) -> Changes:
        """Read the repositories and write what changed. Raises `RegistryUnavailable`."""
        async with self._scanning:
            found = await asyncio.to_thread(self._look)
            done = Changes(refused=dict(found.refused))
            await self._add(found.fresh, done)
            for key, model in found.changed.items():
                await self._write(key, model, done)
            for key in found.gone:
                await self._remove(key, done)
            for path, why in done.refused.items():
                if self._refused.get(path) != why:
                    log.warning("a folder is not served", path=shown(path, 4096), why=why)
            self._tell(done.refused)
            if done.added or done.changed or done.removed:
                log.info("models changed", added=len(done.added), changed=len(done.changed), removed=len(done.removed))
            return done

    def _tell(self, refused: Mapping[str, str]) -> None:
        if refused == self._refused:
            return
        self._refused = dict(refused)
        self.refused = {self._scanner.label(path): shown(why) for path, why in sorted(refused.items())[:TOLD]}
        self.on_refused()

    def _look(self) -> _Found:
        """Scan, and compare with what the registry holds. Runs in a thread: with very many models it takes a while."""
        scan = self._scanner.scan()
        self.kinds = frozenset(model.runtime for model in scan.models.values())
        view = self._mirror.view
        found = _Found(refused=scan.refused)
        for key, model in scan.models.items():
            known = view.models.get(key[0], {}).get(key[1])
            if known is None:
                found.fresh[key] = model
            elif not _same(known, model):
                found.changed[key] = model
        found.gone += [
            (name, version)
            for name, versions in view.models.items()
            for version, model in versions.items()
            if (name, version) not in scan.models and self._is_ours(model) and not _is_under(model, scan.refused)
        ]
        return found

    async def describe(
        self, model: ModelVersion, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        """Write what a load of these files found out into their record: signature, bytes in memory, seconds.

        `model` is the version as loaded, with its `loaded_bytes` and `load_s`.
        """
        path = model_key(model.name, model.version)
        entry = await self._store.get(path)
        if entry is None:
            return
        latest = _record(entry)
        if latest is None or latest.digest != model.digest:
            return
        known = bool(latest.inputs and latest.outputs)
        found = replace(
            latest,
            inputs=latest.inputs if known else inputs,
            outputs=latest.outputs if known else outputs,
            loaded_bytes=model.loaded_bytes,
            load_s=model.load_s,
        )
        if found != latest:
            await self._store.replace(path, records.encode(found), expected=entry.mod_revision)

    async def _add(self, models: Mapping[VersionKey, ModelVersion], done: Changes) -> None:
        """Write versions that nobody has published, many at a time; where somebody was quicker, one by one."""
        keys = {model_key(*key): key for key in models}
        for batch in batches({path: records.encode(models[key]) for path, key in keys.items()}):
            absent = [Guard(path, mod_revision=0) for path in batch]
            if await self._store.write(batch, guards=absent) is not None:
                done.added.extend("/".join(keys[path]) for path in batch)
                continue
            for path in batch:
                await self._write(keys[path], models[keys[path]], done)

    async def _write(self, key: VersionKey, found: ModelVersion, done: Changes) -> None:
        path = model_key(*key)
        entry = await self._store.get(path)
        latest = _record(entry) if entry else None
        if latest is not None and _same(latest, found):
            return
        if latest is not None and _files(latest) == _files(found):
            # Only what no copy is loaded for changed; what loads found out and an operator said stays.
            found = replace(latest, scaling=found.scaling)
        if latest is not None and not self._is_ours(latest):
            done.refused[found.source] = f"'{key[0]}' version {key[1]} is published from {latest.source} already"
            return
        expected = entry.mod_revision if entry else 0
        if await self._store.replace(path, records.encode(found), expected=expected) is not None:
            (done.changed if latest else done.added).append("/".join(key))

    async def _remove(self, key: VersionKey, done: Changes) -> None:
        path = model_key(*key)
        entry = await self._store.get(path)
        if entry is not None and await self._store.replace(path, None, expected=entry.mod_revision) is not None:
            done.removed.append("/".join(key))

    def _is_ours(self, model: ModelVersion) -> bool:
        return any(model.source.startswith(root.rstrip("/") + "/") for root in self._scanner.urls())


def _record(entry: Entry) -> ModelVersion | None:
    """Return a version's record; None for one that cannot be read, which stands for nothing and is written over."""
    try:
        return records.decode_model(entry.value)
    except records.BadRecord:
        return None


def _is_under(model: ModelVersion, folders: Iterable[str]) -> bool:
    """Tell whether a version's files lie in one of `folders`, whose trouble may pass: it is there, and not gone."""
    source = folder_of(model)
    return any(source.is_relative_to(folder) for folder in folders)


def _files(model: ModelVersion) -> str:
    """Return the digest of what the repository holds: an override by a load request does not make files differ."""
    return model.files_digest or model.digest


def _same(one: ModelVersion, other: ModelVersion) -> bool:
    return _files(one) == _files(other) and one.scaling == other.scaling
