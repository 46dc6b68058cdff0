"""The model repository on disk: folders `<name>/<version>/` with an optional model.yaml, as ModelVersion records.

This file reads; `mesh.node.publish` writes the registry. docs/model-repository.md is the user's description.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from mesh.core.placement.window import MAX_SPAN_S
from mesh.core.types import (
    Generation,
    Isolation,
    ModelName,
    ModelVersion,
    ScaleToZero,
    Scaling,
    Sequencing,
    TensorSpec,
    Version,
)
from mesh.core.view import VersionKey
from mesh.node.folder import (
    CONFIG_BYTES,
    LABELS_BYTES,
    BadFolder,
    check_numbers,
    check_yaml,
    digest_of,
    files_of,
    is_folder,
    read_file,
    reason_of,
    shown,
)
from mesh.node.isolation_yaml import isolating
from mesh.node.model_yaml import ModelYaml
from mesh.node.remembered import Known, look_at
from mesh.node.runtimes import onnx, python
from mesh.node.sequence_yaml import generating, sequencing
from mesh.registry import records

CONFIG = "model.yaml"

LABELS = "labels.txt"
"""In the model's folder: the names of its classes, one a line."""

RECORD_BYTES: Final = 512 * 1024
"""Of one version in the registry; etcd takes 1.5 MB in one request, and a node's copy of the record comes on top."""

RUNTIME_FILES = {"onnx": onnx.FILE, "python": python.FILE}


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan found."""

    models: Mapping[VersionKey, ModelVersion] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    """Path of a folder (repository, model or version) that cannot be served -> why. It says nothing of what is in it:
    a version that was served from there is not gone."""


class Scanner:
    """Reads repositories. A folder that looks as before is not read again, nor a file with its old size and mtime."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = [root.resolve() for root in roots]
        self._digests: dict[tuple[str, int, int], bytes] = {}
        self._known: dict[Path, Known] = {}

    def urls(self) -> tuple[str, ...]:
        """Return the repositories as ``file://`` URLs."""
        return tuple(root.as_uri() for root in self.roots)

    def scan(self) -> Scan:
        """Read every repository; the first that has a model name wins. Blocks: call it in a thread.

        Whatever is in a folder leaves that folder out, and no other.
        """
        models: dict[VersionKey, ModelVersion] = {}
        refused: dict[str, str] = {}
        names: set[str] = set()
        seen: dict[tuple[str, int, int], bytes] = {}
        known: dict[Path, Known] = {}
        for root in self.roots:
            try:
                with os.scandir(root) as entries:
                    folders = sorted(root / each.name for each in entries if _may_be_model(each))
            except (OSError, ValueError) as error:
                refused[str(root)] = f"the repository cannot be read: {reason_of(error)}"
                continue
            for folder in folders:
                if folder.name in names:
                    continue
                found, bad = self._found(folder, seen, known)
                if found or bad:
                    names.add(folder.name)
                    models.update({(model.name, model.version): model for model in found})
                    refused.update(bad)
        self._digests, self._known = seen, known
        return Scan(models, refused)

    def label(self, path: str) -> str:
        """Return a refused folder as callers know it: "model", "model/version", or the path of a repository."""
        for root in self.roots:
            if path != str(root) and Path(path).is_relative_to(root):
                return shown(Path(path).relative_to(root).as_posix())
        return shown(path)

    def _found(
        self, folder: Path, seen: dict[tuple[str, int, int], bytes], known: dict[Path, Known]
    ) -> tuple[Sequence[ModelVersion], dict[str, str]]:
        """Return what is in a folder, from memory when it looks as it did when it was read."""
        look, before = look_at(folder), self._known.get(folder)
        if look is not None and before is not None and before.look == look:
            seen.update(before.digests)
            known[folder] = before
            return before.found, {}
        digests: dict[tuple[str, int, int], bytes] = {}
        try:
            found, bad = self._model(folder, digests)
        except Exception as error:  # noqa: BLE001 - what anybody wrote may raise anything, and ends no scan
            return [], {str(folder): reason_of(error)}
        seen.update(digests)
        if look is not None and found and not bad:
            known[folder] = Known(look, tuple(found), digests)
        return found, bad

    def _model(
        self, folder: Path, seen: dict[tuple[str, int, int], bytes]
    ) -> tuple[list[ModelVersion], dict[str, str]]:
        """Return the versions that can be served, and why others cannot: a version being copied in harms no other."""
        versions = sorted(
            path for path in folder.iterdir() if path.name.isascii() and path.name.isdecimal() and is_folder(path)
        )
        config_bytes = read_file(folder / CONFIG, CONFIG_BYTES) or b""
        if not versions and not config_bytes:
            return [], {}  # Some folder beside the models, not a model.
        if not folder.name.isprintable() or folder.name != folder.name.strip():
            raise BadFolder("its name cannot be a model's: expected printable UTF-8 without spaces at its ends")
        if not versions:
            raise BadFolder("it has no version: expected a folder named by a number, such as 1/")
        config = _config(config_bytes)
        # How many copies there are changes nothing about them: they are not loaded again for it.
        said = msgspec.json.encode(msgspec.structs.replace(config, scaling={}, min_copies=0))
        labels = read_file(folder / LABELS, LABELS_BYTES)
        if labels is not None:
            said += b"\0" + labels
        found: list[ModelVersion] = []
        bad: dict[str, str] = {}
        for path in versions:
            try:
                found.append(_recordable(self._version(folder.name, config, said, path, seen)))
            except Exception as error:  # noqa: BLE001 - as in `scan`
                bad[str(path)] = reason_of(error)
        return found, bad

    def _version(
        self, name: str, config: ModelYaml, said: bytes, path: Path, seen: dict[tuple[str, int, int], bytes]
    ) -> ModelVersion:
        runtime: str = config.runtime or next(
            (each for each, file in RUNTIME_FILES.items() if (path / file).is_file()), ""
        )
        if not runtime:
            raise BadFolder(f"version {path.name} has none of {', '.join(RUNTIME_FILES.values())}")
        digest = hashlib.sha256(said)
        size = 0
        for file, about in files_of(path):
            size += about.st_size
            # Names are bytes to the system, and need not be text.
            named = os.fsencode(file.relative_to(path).as_posix())
            digest.update(named + b"\0" + self._file_digest(file, about, seen))
        return ModelVersion(
            name=ModelName(name),
            version=Version(path.name),
            runtime=runtime,
            source=path.as_uri(),
            digest=digest.hexdigest(),
            files_digest=digest.hexdigest(),
            size_bytes=size,
            platform=config.platform,
            inputs=tuple(TensorSpec(each.name, each.dtype, each.shape, each.optional) for each in config.inputs),
            outputs=tuple(TensorSpec(each.name, each.dtype, each.shape, each.optional) for each in config.outputs),
            max_batch_size=config.max_batch_size,
            max_queue_delay_us=config.max_queue_delay_us,
            max_queue_size=config.max_queue_size,
            scaling=_scaling(config),
            decoupled=config.decoupled,
            rerun_failed_batches=config.rerun_failed_batches,
            preserve_ordering=config.preserve_ordering,
            sequence=_sequencing(config),
            generation=_generation(config, runtime),
            node_labels=config.node_labels,
            device=config.device,
            parameters=config.parameters,
            isolation=_isolation(config),
        )

    def _file_digest(self, file: Path, about: os.stat_result, seen: dict[tuple[str, int, int], bytes]) -> bytes:
        key = (str(file), about.st_size, about.st_mtime_ns)
        known = self._digests.get(key)
        if known is None:
            known = digest_of(file)
        seen[key] = known
        return known


def folder_of(model: ModelVersion) -> Path:
    """Return where a version's files are."""
    return Path(unquote(urlsplit(model.source).path, errors="surrogateescape"))


def labels_of(version: Path) -> tuple[str, ...]:
    """Return the names of the classes, of the model whose version lies in `version`; empty when it has none. Blocks."""
    data = read_file(version.parent / LABELS, LABELS_BYTES)
    return () if data is None else tuple(line.strip() for line in data.decode(errors="replace").splitlines())


def _may_be_model(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith((".", "__")) and is_folder(entry)


def _recordable(model: ModelVersion) -> ModelVersion:
    """Return `model` when the registry can hold it. Raises `BadFolder` for what JSON has no form for, or too much."""
    try:
        value = records.encode(model)
        same = records.decode_model(value) == model
    except (ValueError, OverflowError, TypeError) as error:
        raise BadFolder(f"{CONFIG}: it cannot be kept in the registry: {error}") from error
    if len(value) > RECORD_BYTES:
        raise BadFolder(f"{CONFIG}: it is {len(value)} bytes in the registry; at most {RECORD_BYTES} are")
    if not same:
        raise BadFolder(f"{CONFIG}: it is another one when it is read back from the registry")
    return model


def _config(data: bytes) -> ModelYaml:
    """Return model.yaml checked. Raises `BadFolder` with the field that is wrong."""
    check_yaml(data)
    try:
        config = msgspec.yaml.decode(data or b"{}", type=ModelYaml)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        # A date that no calendar has, or a key that is a list: PyYAML's constructors raise as Python does.
        raise BadFolder(f"{CONFIG}: {error}") from error
    if config.max_batch_size < 0 or config.max_queue_delay_us < 0 or config.max_queue_size < 0:
        raise BadFolder(f"{CONFIG}: max_batch_size, max_queue_delay_us and max_queue_size must not be negative")
    check_numbers(msgspec.to_builtins(config))
    for each in (*config.inputs, *config.outputs):
        if any(size < -1 for size in each.shape):
            raise BadFolder(f"{CONFIG}: '{each.name}' has shape {list(each.shape)}; a size is -1 (any) or 0 and more")
        if config.max_batch_size and each.shape[:1] != (-1,):
            raise BadFolder(
                f"{CONFIG}: '{each.name}' has shape {list(each.shape)}; with max_batch_size it starts with -1"
            )
    _isolation(config)
    _scaling(config)
    _sequencing(config)
    return config


def _isolation(config: ModelYaml) -> Isolation | None:
    """Return where the model runs. Raises `BadFolder` for what cannot be meant."""
    limits = (config.memory_limit_bytes, config.max_load_s, config.max_run_s)
    said = Isolation(config.isolation, config.instances, config.streams, config.python, *limits)
    try:
        return isolating(said)
    except ValueError as error:
        raise BadFolder(f"{CONFIG}: {error}") from error


def _generation(config: ModelYaml, runtime: str) -> Generation | None:
    """Return how it makes text. Raises `BadFolder` for what cannot be meant."""
    if config.generation is None:
        return None
    if runtime != "onnx" or not config.decoupled or config.inputs or config.outputs:
        raise BadFolder(
            f"{CONFIG}: generation is for a decoupled onnx model, whose inputs and outputs it names: set decoupled, "
            "and leave inputs and outputs out"
        )
    try:
        return generating(config.generation)
    except ValueError as error:
        raise BadFolder(f"{CONFIG}: generation: {error}") from error


def _sequencing(config: ModelYaml) -> Sequencing | None:
    """Return how its sequences go. Raises `BadFolder` for what cannot be meant."""
    if config.sequence is None:
        return None
    if config.preserve_ordering:
        raise BadFolder(
            f"{CONFIG}: preserve_ordering is for models without a sequence section, as the steps of each sequence are "
            "answered in their order: leave one of both out"
        )
    if config.decoupled:
        raise BadFolder(f"{CONFIG}: a decoupled model keeps the state of a generation; leave sequence out")
    try:
        return sequencing(config.sequence, [each.name for each in (*config.inputs, *config.outputs)])
    except ValueError as error:
        raise BadFolder(f"{CONFIG}: sequence: {error}") from error


def _scaling(config: ModelYaml) -> Scaling:
    """Return how many copies the model has. Raises `BadFolder` for what cannot be meant."""
    known = {each.name for each in fields(Scaling)}
    if unknown := sorted(config.scaling.keys() - known):
        raise BadFolder(f"{CONFIG}: scaling has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    rule = config.scaling.get("scale_to_zero", ScaleToZero.PRESSURE)
    if rule not in list(ScaleToZero):
        raise BadFolder(f"{CONFIG}: scaling.scale_to_zero must be {' or '.join(ScaleToZero)}, got {rule}")
    try:
        scaling = msgspec.convert(config.scaling, Scaling)
    except msgspec.ValidationError as error:
        raise BadFolder(f"{CONFIG}: scaling: {error}") from error
    least = config.min_copies
    if least is not None and "min_copies" in config.scaling and least != scaling.min_copies:
        raise BadFolder(
            f"{CONFIG}: min_copies is {least} and scaling.min_copies {scaling.min_copies}; give one of them"
        )
    scaling = replace(scaling, min_copies=scaling.min_copies if least is None else least)
    checks = (
        (scaling.min_copies >= 0, "min_copies", "0 or more", scaling.min_copies),
        (scaling.max_copies >= 0, "scaling.max_copies", "0 (no limit) or more", scaling.max_copies),
        (
            not scaling.max_copies or scaling.max_copies >= scaling.min_copies,
            "scaling.max_copies",
            f"0 (no limit) or at least min_copies, {scaling.min_copies}",
            scaling.max_copies,
        ),
        (scaling.target > 0, "scaling.target", "more than 0", scaling.target),
        (
            0 < scaling.target_utilization <= 1,
            "scaling.target_utilization",
            "more than 0 and at most 1",
            scaling.target_utilization,
        ),
        (
            0 < scaling.window_s <= MAX_SPAN_S,
            "scaling.window_s",
            f"more than 0 and at most {MAX_SPAN_S:g}",
            scaling.window_s,
        ),
        (
            0 < scaling.panic_window_s <= scaling.window_s,
            "scaling.panic_window_s",
            f"more than 0 and at most window_s, {scaling.window_s}",
            scaling.panic_window_s,
        ),
        (scaling.panic_threshold > 1, "scaling.panic_threshold", "more than 1", scaling.panic_threshold),
        (scaling.idle_s > 0, "scaling.idle_s", "more than 0", scaling.idle_s),
    )
    for right, name, expected, came in checks:
        if not right:
            raise BadFolder(f"{CONFIG}: {name} must be {expected}, got {came}")
    return scaling
