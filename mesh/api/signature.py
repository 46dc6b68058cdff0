"""A tensor against what a signature says of it. The texts are Triton's: clients match on them."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.core.errors import InvalidRequest
from mesh.core.types import TensorSpec


def check_tensor(datatype: str, shape: Sequence[int], spec: TensorSpec, model: str) -> None:
    """Raise `InvalidRequest` unless a tensor of this type and shape may be input `spec` of `model`."""
    if datatype != spec.dtype:
        raise InvalidRequest(
            f"inference input '{spec.name}' data-type is '{datatype}', but model '{model}' expects '{spec.dtype}'"
        )
    fits = len(shape) == len(spec.shape) and all(
        size >= 0 and want in (-1, size) for size, want in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise InvalidRequest(
            f"unexpected shape for input '{spec.name}' for model '{model}'. "
            f"Expected {show_shape(spec.shape)}, got {show_shape(shape)}"
        )


def show_shape(shape: Sequence[int]) -> str:
    """Return a shape as Triton writes it: no spaces."""
    return f"[{','.join(map(str, shape))}]"
