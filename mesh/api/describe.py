"""From the records of the mesh to the protocol: metadata, ModelConfig, nodes and copies, alike on router and node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mesh.api.messages import ModelConfig, ModelMetadataResponse, control
from mesh.core.types import ControlKind, Copy, Dtype, ModelVersion, Node, NodeId, Sequencing, TensorSpec

PLATFORM = {"onnx": "onnxruntime_onnx", "python": "python"}
BACKEND = {"onnx": "onnxruntime", "python": "python"}
"""Triton's names of the same runtimes: clients and dashboards know them."""

_CONFIG_TYPE = {dtype: f"TYPE_{'STRING' if dtype is Dtype.BYTES else dtype.value}" for dtype in Dtype}


def model_metadata(model: ModelVersion, versions: Sequence[str]) -> ModelMetadataResponse:
    """Return ModelMetadata's answer. Shapes include the batch axis as -1, as Triton shows them."""
    return ModelMetadataResponse(
        name=model.name,
        versions=versions,
        platform=model.platform or PLATFORM.get(model.runtime, model.runtime),
        inputs=[_tensor_metadata(spec) for spec in model.inputs],
        outputs=[_tensor_metadata(spec) for spec in model.outputs],
    )


def _tensor_metadata(spec: TensorSpec) -> ModelMetadataResponse.TensorMetadata:
    return ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.dtype.value, shape=spec.shape)


def model_config(model: ModelVersion) -> ModelConfig:
    """Return Triton's ModelConfig of a version. Its dims leave the batch axis out when max_batch_size > 0."""
    skip = 1 if model.max_batch_size > 0 else 0
    config = ModelConfig(
        name=model.name,
        platform=model.platform or PLATFORM.get(model.runtime, model.runtime),
        backend=BACKEND.get(model.runtime, model.runtime),
        max_batch_size=model.max_batch_size,
    )
    for spec in model.inputs:
        config.input.add(
            name=spec.name, data_type=_CONFIG_TYPE[spec.dtype], dims=spec.shape[skip:], optional=spec.optional
        )
    for spec in model.outputs:
        config.output.add(name=spec.name, data_type=_CONFIG_TYPE[spec.dtype], dims=spec.shape[skip:])
    if model.sequence is not None:
        _sequence_batching(config.sequence_batching, model.sequence, model)
    elif model.max_batch_size > 0 or model.preserve_ordering:
        config.dynamic_batching.preserve_ordering = model.preserve_ordering
        config.dynamic_batching.max_queue_delay_microseconds = model.max_queue_delay_us
        if model.max_queue_size:
            config.dynamic_batching.default_queue_policy.max_queue_size = model.max_queue_size
    config.model_transaction_policy.decoupled = model.decoupled
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(
        name=model.name, kind="KIND_AUTO" if model.device == "auto" else f"KIND_{model.device.upper()}", count=1
    )
    for key, value in sorted(model.parameters.items()):
        config.parameters[key].string_value = value
    return config


def _sequence_batching(told: Any, sequence: Sequencing, model: ModelVersion) -> None:
    """Write how sequences are scheduled, in Triton's words."""
    told.max_sequence_idle_microseconds = int(sequence.idle_s * 1e6)
    if sequence.minimum_slot_utilization:
        # Triton has the field in this strategy alone.
        told.direct.minimum_slot_utilization = sequence.minimum_slot_utilization
        told.direct.max_queue_delay_microseconds = model.max_queue_delay_us
    else:
        told.oldest.max_candidate_sequences = sequence.max_live
        told.oldest.max_queue_delay_microseconds = model.max_queue_delay_us
    for each in sequence.controls:
        control = told.control_input.add(name=each.name).control.add(kind=f"CONTROL_SEQUENCE_{each.kind.name}")
        if each.kind is ControlKind.CORRID:
            control.data_type = _CONFIG_TYPE[each.dtype]
        elif each.dtype is Dtype.FP32:
            control.fp32_false_true.extend([each.off, each.on])
        elif each.dtype is Dtype.BOOL:
            control.bool_false_true.extend([bool(each.off), bool(each.on)])
        else:
            control.int32_false_true.extend([int(each.off), int(each.on)])
    for state in sequence.states:
        told.state.add(
            input_name=state.input, output_name=state.output, data_type=_CONFIG_TYPE[state.dtype], dims=state.shape
        )


def copy_message(copy: Copy, node: NodeId, *, loads_before: int = 0) -> control.Copy:
    """Return a copy as mesh.v1 shows it. `loads_before` are those that its own load waits for."""
    return control.Copy(
        model=copy.model,
        version=copy.version,
        node=node,
        state=copy.state.value,
        bytes=copy.bytes,
        last_used_s=copy.last_used_s,
        error=copy.error,
        device=copy.device,
        changed_s=copy.changed_s,
        loads_before=loads_before,
    )


def _by_key(copy: Copy) -> tuple[str, str]:
    return copy.model, copy.version


def node_message(node: Node, copies: Iterable[Copy]) -> control.Node:
    """Return a node as mesh.v1 shows it."""
    return control.Node(
        id=node.id,
        address=node.address,
        labels=dict(node.labels),
        devices=[
            control.Device(
                kind=device.kind.value,
                index=device.index,
                name=device.name,
                total_bytes=device.total_bytes,
                free_bytes=device.free_bytes,
            )
            for device in node.devices
        ],
        copies=[copy_message(copy, node.id) for copy in sorted(copies, key=_by_key)],
        draining=node.draining,
        started_s=node.started_s,
    )
