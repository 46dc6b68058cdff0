"""The targets. Each takes any bytes and returns, or raises because a parser broke its promise.

A parser raises its own error for what it refuses, and never another one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from google.protobuf.message import DecodeError

from mesh.api.messages import InferTensorContents
from mesh.api.tensors import TensorError, decode_contents, decode_raw
from mesh.core.errors import InvalidRequest, LoadFailed
from mesh.core.types import Dtype, ModelName, ModelVersion, TensorSpec, Version
from mesh.node.repository import BadFolder, _config
from mesh.node.running import decode
from mesh.node.validate import read_inputs
from mesh.registry import keys, records
from mesh.router.override import overridden
from mesh.wire.peek import PeekError, peek
from tests.fuzz.wire_targets import WIRE_TARGETS

DTYPES = list(Dtype)
SPECS = (TensorSpec("x", Dtype.FP32, (-1, 2)), TensorSpec("t", Dtype.BYTES, (-1,), optional=True))
MODEL = ModelVersion(ModelName("m"), Version("1"), "onnx", "file:///m/1", "d", 1, inputs=SPECS, max_batch_size=4)


def fuzz_peek(data: bytes) -> None:
    """The router's scan of a request; where it reads a name, protobuf reads the same."""
    with suppress(PeekError):
        read = peek(data)
        with suppress(InvalidRequest):
            assert decode(data).model_name == read.model_name


def fuzz_request(data: bytes) -> None:
    """The node's decoding and validation of a request."""
    with suppress(InvalidRequest):
        read_inputs(decode(data), SPECS, "m", 4)


def fuzz_tensor(data: bytes) -> None:
    """Raw and typed tensor contents; the first bytes choose type and shape."""
    if len(data) < 3:
        return
    dtype = DTYPES[data[0] % len(DTYPES)]
    shape = [data[1] % 5, data[2] % 5]
    with suppress(TensorError):
        decode_raw(data[3:], dtype, shape)
    try:
        contents = InferTensorContents.FromString(data[3:])
    except DecodeError:
        return
    with suppress(TensorError):
        decode_contents(contents, dtype, shape)


def fuzz_records(data: bytes) -> None:
    """Registry records and keys."""
    for read in (records.decode_node, records.decode_model, records.decode_placement):
        with suppress(records.BadRecord):
            read(data)
    key = data.decode("latin-1")
    for split in (keys.split_node_key, keys.split_model_key):
        with suppress(ValueError):
            split(key)
        with suppress(ValueError):
            split(keys.MODELS + key)


def fuzz_model_yaml(data: bytes) -> None:
    """A model's configuration."""
    with suppress(BadFolder):
        _config(data)


def fuzz_override(data: bytes) -> None:
    """The JSON of a load request."""
    with suppress(LoadFailed):
        overridden(MODEL, data.decode("utf-8", "replace"))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "peek": fuzz_peek,
    "request": fuzz_request,
    "tensor": fuzz_tensor,
    "records": fuzz_records,
    "model_yaml": fuzz_model_yaml,
    "override": fuzz_override,
    **WIRE_TARGETS,
}
