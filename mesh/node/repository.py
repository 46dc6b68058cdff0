"""The model repository on disk: folders `<name>/<version>/` with an optional model.yaml, as ModelVersion records.

This file reads; `mesh.node.publish` writes the registry. docs/model-repository.md is the user's description.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from mesh.core.placement.window import MAX_SPAN_S
from mesh.core.types import (
    PLAIN_ISOLATION,
    Dtype,
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
from mesh.node.runtimes import onnx, python
from mesh.node.sequence_yaml import generating, sequencing

CONFIG = "model.yaml"

LABELS = "labels.txt"
"""In the model's folder: the names of its classes, one a line."""

MOST_INSTANCES = 64
"""Processes of one copy: each has the model in memory, and more than cores run no faster."""

MOST_STREAMS = 1024
"""Threads of one process."""

RUNTIME_FILES = {"onnx": onnx.FILE, "python": python.FILE}


class TensorYaml(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output in model.yaml."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    optional: bool = False


class ModelYaml(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """model.yaml. The fields mean what they mean in `ModelVersion`."""

    runtime: Literal["onnx", "python", "remote", ""] = ""
    platform: str = ""
    max_batch_size: int = 0
    max_queue_delay_us: int = 0
    max_queue_size: int = 0
    min_copies: int | None = None
    """Short for the one of `scaling`."""
    scaling: dict[str, Any] = {}
    """The fields of `Scaling`."""
    inputs: tuple[TensorYaml, ...] = ()
    outputs: tuple[TensorYaml, ...] = ()
    decoupled: bool = False
    sequence: dict[str, Any] | None = None
    """The fields of `Sequencing`."""
    generation: dict[str, Any] | None = None
    """The fields of `Generation`."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    node_labels: dict[str, str] = {}
    parameters: dict[str, str] = {}
    isolation: Literal["process", "none", ""] = ""
    instances: int = 1
    streams: int = 0
    python: str = ""
    memory_limit_bytes: int = 0
    max_load_s: float = 600.0
    max_run_s: float = 0.0


class BadFolder(Exception):
    """A folder that cannot be served, and why."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan found."""

    models: Mapping[VersionKey, ModelVersion] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    """Path of a folder (repository, model or version) that cannot be served -> why. It says nothing of what is in it:
    a version that was served from there is not gone."""


class Scanner:
    """Reads repositories. Digests are remembered by (path, size, mtime): a scan without changes reads no file."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = [root.resolve() for root in roots]
        self._digests: dict[tuple[str, int, int], bytes] = {}

    def urls(self) -> tuple[str, ...]:
        """Return the repositories as ``file://`` URLs."""
        return tuple(root.as_uri() for root in self.roots)

    def scan(self) -> Scan:
        """Read every repository; the first that has a model name wins. Blocks: call it in a thread."""
        models: dict[VersionKey, ModelVersion] = {}
        refused: dict[str, str] = {}
        names: set[str] = set()
        seen: dict[tuple[str, int, int], bytes] = {}
        for root in self.roots:
            try:
                folders = sorted(
                    path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))
                )
            except OSError as error:
                refused[str(root)] = f"the repository cannot be read: {error.strerror}"
                continue
            for folder in folders:
                if folder.name in names:
                    continue
                try:
                    found, bad = self._model(folder, seen)
                except (BadFolder, OSError) as error:
                    found, bad = [], {str(folder): str(error)}
                if found or bad:
                    names.add(folder.name)
                    models.update({(model.name, model.version): model for model in found})
                    refused.update(bad)
        self._digests = seen
        return Scan(models, refused)

    def _model(
        self, folder: Path, seen: dict[tuple[str, int, int], bytes]
    ) -> tuple[list[ModelVersion], dict[str, str]]:
        """Return the versions that can be served, and why others cannot: a version being copied in harms no other."""
        versions = sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
        config_path = folder / CONFIG
        config_bytes = config_path.read_bytes() if config_path.is_file() else b""
        if not versions and not config_bytes:
            return [], {}  # Some folder beside the models, not a model.
        if not versions:
            raise BadFolder("it has no version: expected a folder named by a number, such as 1/")
        config = _config(config_bytes)
        # How many copies there are changes nothing about them: they are not loaded again for it.
        said = msgspec.json.encode(msgspec.structs.replace(config, scaling={}, min_copies=0))
        labels = folder / LABELS
        if labels.is_file():
            said += b"\0" + labels.read_bytes()
        found: list[ModelVersion] = []
        bad: dict[str, str] = {}
        for path in versions:
            try:
                found.append(self._version(folder.name, config, said, path, seen))
            except (BadFolder, OSError) as error:
                bad[str(path)] = str(error)
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
        for file in sorted(each for each in path.rglob("*") if each.is_file() and "__pycache__" not in each.parts):
            size += file.stat().st_size
            digest.update(file.relative_to(path).as_posix().encode() + b"\0" + self._file_digest(file, seen))
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
            sequence=_sequencing(config),
            generation=_generation(config, runtime),
            node_labels=config.node_labels,
            device=config.device,
            parameters=config.parameters,
            isolation=_isolation(config),
        )

    def _file_digest(self, file: Path, seen: dict[tuple[str, int, int], bytes]) -> bytes:
        stat = file.stat()
        key = (str(file), stat.st_size, stat.st_mtime_ns)
        known = self._digests.get(key)
        if known is None:
            with file.open("rb") as opened:
                known = hashlib.file_digest(opened, "sha256").digest()
        seen[key] = known
        return known


def labels_of(version: Path) -> tuple[str, ...]:
    """Return the names of the classes, of the model whose version lies in `version`; empty when it has none. Blocks."""
    try:
        text = (version.parent / LABELS).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    return tuple(line.strip() for line in text.splitlines())


def _config(data: bytes) -> ModelYaml:
    """Return model.yaml checked. Raises `BadFolder` with the field that is wrong."""
    try:
        config = msgspec.yaml.decode(data or b"{}", type=ModelYaml)
    except msgspec.DecodeError as error:
        raise BadFolder(f"{CONFIG}: {error}") from error
    if config.max_batch_size < 0 or config.max_queue_delay_us < 0 or config.max_queue_size < 0:
        raise BadFolder(f"{CONFIG}: max_batch_size, max_queue_delay_us and max_queue_size must not be negative")
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
    """Return where the model runs, None where nothing is said. Raises `BadFolder` for what cannot be meant."""
    checks = (
        (1 <= config.instances <= MOST_INSTANCES, "instances", f"from 1 to {MOST_INSTANCES}", config.instances),
        (0 <= config.streams <= MOST_STREAMS, "streams", f"from 0 to {MOST_STREAMS}", config.streams),
        (config.memory_limit_bytes >= 0, "memory_limit_bytes", "0 (none) or more", config.memory_limit_bytes),
        (0 < config.max_load_s < math.inf, "max_load_s", "more than 0", config.max_load_s),
        (0 <= config.max_run_s < math.inf, "max_run_s", "0 (none) or more", config.max_run_s),
    )
    for right, name, expected, came in checks:
        if not right:
            raise BadFolder(f"{CONFIG}: {name} must be {expected}, got {came}")
    own_process = config.instances > 1 or config.streams or config.python or config.memory_limit_bytes
    if own_process and config.isolation == "none":
        raise BadFolder(
            f"{CONFIG}: instances, streams, python and memory_limit_bytes are about worker processes; leave them out, "
            "or isolation: none"
        )
    found = Isolation(
        config.isolation,
        config.instances,
        config.streams,
        config.python,
        config.memory_limit_bytes,
        config.max_load_s,
        config.max_run_s,
    )
    return None if found == PLAIN_ISOLATION else found


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
