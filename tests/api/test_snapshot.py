"""States as bytes: what comes back, and what is no state."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.api.snapshot import DTYPES, FORMAT, decode_snapshot, encode_snapshot
from mesh.core.errors import InvalidRequest, ModelFailed
from mesh.node.workers.inside import values
from mesh.node.workers.inside.values import BadValue, decode_state, encode_state


def with_array(kind: str, shape: list[int] | None = None, raw: bytes = b"\0" * 8) -> bytes:
    """Return a state with one array of a type that its text names."""
    parts = msgspec.msgpack.encode([kind, [1] if shape is None else shape, raw])
    return msgspec.msgpack.encode((FORMAT, "digest", 1, msgspec.msgpack.Ext(1, parts), False))


@pytest.mark.parametrize("kind", DTYPES)
def test_every_numeric_type_comes_back_as_it_went(kind: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(kind)
    for each in (array, array.astype(array.dtype.newbyteorder(">")), np.asfortranarray(array)):
        for back in (
            decode_snapshot(encode_snapshot({"a": each}, count=1, digest="d")).state["a"],
            decode_state(encode_state({"a": each}))["a"],
        ):
            assert (back.dtype.str, back.tolist()) == (kind, array.tolist())


@pytest.mark.parametrize(
    "kind", ["(", "{'a'", "f4,(", "O", "|O", "<f16", "V8", "<M8[s]", "S4", "i4,i4", "(1000000000,)f8", "", "\0", "<f4 "]
)
def test_a_type_that_is_none_of_ours_is_never_given_to_numpy(kind: str) -> None:
    with pytest.raises(InvalidRequest, match="expected the state of a sequence"):
        decode_snapshot(with_array(kind))
    with pytest.raises(BadValue):
        decode_state(msgspec.msgpack.encode(msgspec.msgpack.Ext(1, msgspec.msgpack.encode([kind, [1], b"\0" * 8]))))


@given(kind=st.text(max_size=12), shape=st.lists(st.integers(-2, 1 << 40), max_size=3), raw=st.binary(max_size=16))
def test_any_array_is_one_or_refused(kind: str, shape: list[int], raw: bytes) -> None:
    def refused(decode: Any, data: bytes, error: type[Exception]) -> bool:
        try:
            decode(data)
        except error:
            return True
        return False

    whole = with_array(kind, shape, raw)
    alone = msgspec.msgpack.encode(msgspec.msgpack.Ext(1, msgspec.msgpack.encode([kind, shape, raw])))
    assert refused(decode_snapshot, whole, InvalidRequest) == refused(decode_state, alone, BadValue)


def test_arrays_of_other_types_cannot_be_kept() -> None:
    for array in (np.array(["a"]), np.array([None]), np.zeros(1, np.longdouble)):
        with pytest.raises(ModelFailed, match="the state of a sequence cannot be kept"):
            encode_snapshot(array, count=1, digest="d")
        with pytest.raises(BadValue):
            encode_state(array)


def test_both_tables_of_types_are_one() -> None:
    assert values.DTYPES == DTYPES
