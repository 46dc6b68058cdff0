"""A request against a version's signature: which tensors, of which type and shape. The texts are Triton's.

Decodes each input to an array on the way, without a copy where the type allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mesh.api.bytes_elements import rest
from mesh.api.messages import ModelInferRequest
from mesh.api.raw_places import Raws
from mesh.api.signature import check_tensor, show_shape
from mesh.api.tensors import TensorError, decode_contents, decode_raw
from mesh.core.errors import InvalidRequest
from mesh.core.types import Dtype, TensorSpec
from mesh.node.runtimes.base import Array

_NO_ROWS = 0


def read_inputs(
    request: ModelInferRequest,
    specs: Sequence[TensorSpec],
    name: str,
    max_batch_size: int,
    between: Callable[[], None] = rest,
    *,
    raws: Raws | None = None,
) -> tuple[dict[str, Array], int]:
    """Return the inputs as arrays by name, and the number of rows (1 for a version that does not batch).

    `raws` are the request's raw tensors, where they are at hand without a copy. `between` is called between pieces of
    long inputs. Raises `InvalidRequest` for any input that is missing, unknown, doubled, or of another type, shape or
    size.
    """
    given = request.inputs
    known = {spec.name: spec for spec in specs}
    _check_names([tensor.name for tensor in given], specs, name)
    raws = request.raw_input_contents if raws is None else raws
    arrays: dict[str, Array] = {}
    rows = _NO_ROWS
    for index, tensor in enumerate(given):
        spec = known[tensor.name]
        shape = tuple(tensor.shape)
        if max_batch_size and not shape:
            raise InvalidRequest(f"input '{tensor.name}' has no shape but model requires batch dimension for '{name}'")
        check_tensor(tensor.datatype, shape, spec, name)
        if max_batch_size:
            rows = check_rows(shape, spec, name, rows, max_batch_size)
        raw = raws[index] if index < len(raws) else None
        arrays[spec.name] = _read(tensor, raw, spec, name, between, uses_raw=len(raws) > 0)
    if len(raws) > len(given):
        raise InvalidRequest(f"expected {len(given)} raw inputs for model '{name}', one per input; got {len(raws)}")
    return arrays, rows or 1


def _check_names(given: Sequence[str], specs: Sequence[TensorSpec], name: str) -> None:
    known = {spec.name for spec in specs}
    required = [spec.name for spec in specs if not spec.optional]
    missing = [each for each in required if each not in given]
    unknown = next((each for each in given if each not in known), None)
    if unknown is not None and len(given) >= len(required):
        raise InvalidRequest(
            f"unexpected inference input '{unknown}' for model '{name}', which takes {', '.join(sorted(known))}"
        )
    if missing or unknown is not None:
        got, lacks = _quoted(given), _quoted(missing)
        raise InvalidRequest(
            f"expected {len(required)} inputs but got {len(given)} inputs for model '{name}'. "
            f"Got input(s) [{got}], but missing required input(s) [{lacks}]. Please provide all required input(s)."
        )
    if len(set(given)) != len(given):
        twice = next(each for each in given if given.count(each) > 1)
        raise InvalidRequest(f"input '{twice}' already exists in request for model '{name}'")


def _quoted(names: Sequence[str]) -> str:
    return ",".join(f"'{each}'" for each in names)


def check_rows(shape: tuple[int, ...], spec: TensorSpec, name: str, rows: int, limit: int) -> int:
    """Return the rows of an input, the same as those before (`rows`, 0: none) and at most `limit`."""
    if shape[0] > limit:
        raise InvalidRequest(f"inference request batch-size must be <= {limit} for '{name}'")
    if shape[0] < 1:
        raise InvalidRequest(
            f"unexpected shape for input '{spec.name}' for model '{name}'. "
            f"Expected {show_shape(spec.shape)} with a batch of 1 or more, got {show_shape(shape)}"
        )
    if rows not in (_NO_ROWS, shape[0]):
        raise InvalidRequest(
            f"input '{spec.name}' batch size does not match other inputs for '{name}': got {shape[0]} rows, the others "
            f"have {rows}"
        )
    return shape[0]


def _read(
    tensor: Any,
    raw: bytes | memoryview | None,
    spec: TensorSpec,
    name: str,
    between: Callable[[], None],
    *,
    uses_raw: bool,
) -> Array:
    of = f"for input '{spec.name}' for model '{name}'"
    typed = tensor.HasField("contents")
    if uses_raw and typed:
        raise InvalidRequest(
            f"contents field must not be specified when using raw_input_contents for '{spec.name}' for model '{name}'"
        )
    if (raw is None) if uses_raw else (not typed and 0 not in tensor.shape):
        raise InvalidRequest(f"unable to find data for input tensor '{spec.name}' for model '{name}' in request")
    try:
        if raw is not None:
            return decode_raw(raw, spec.dtype, tensor.shape, between)
        return decode_contents(tensor.contents, spec.dtype, tensor.shape, between)
    except TensorError as error:
        if error.unit == "bytes" and spec.dtype is not Dtype.BYTES:
            said = f"input byte size mismatch {of}. Expected {error.expected}, got {error.got}"
        elif error.unit == "elements" and spec.dtype is Dtype.BYTES:
            said = f"expected {error.expected} string elements {of}, got {error.got}"
        else:
            said = f"unexpected data {of}: {error.message}"
        raise InvalidRequest(said) from error
