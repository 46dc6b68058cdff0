"""The fields of model.yaml, as they are read. What they may say together, `repository` checks."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from mesh.core.types import Dtype


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
    rerun_failed_batches: bool = True
    preserve_ordering: bool = False
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
