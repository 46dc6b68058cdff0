"""MessagePack for interpreters without msgspec says and reads what msgspec does; states come back as they were."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mesh.api.snapshot import decode_snapshot, encode_snapshot
from mesh.node.workers.inside import msgpack, values
from mesh.node.workers.inside.values import BadValue, codec, decode_state, encode_state

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | TEXT
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(TEXT, inner, max_size=20),
    max_leaves=30,
)


def nothing(value: Any) -> Any:
    raise BadValue(f"got a {type(value).__name__}")


def extension(code: int, data: bytes) -> Any:
    return msgspec.msgpack.Ext(code, data)


@settings(deadline=None)
@given(PLAIN)
def test_each_reads_what_the_other_wrote(value: Any) -> None:
    ours, theirs = msgpack.pack(value, nothing), msgspec.msgpack.encode(value)
    assert msgspec.msgpack.decode(ours) == value
    assert msgpack.unpack(theirs, extension) == value
    assert msgpack.unpack(ours, extension) == value


@settings(deadline=None, max_examples=1000)
@given(st.binary(max_size=60))
def test_bytes_mean_the_same_to_both(data: bytes) -> None:
    """Times are left out: msgspec reads the extension with code -1 as those."""

    def hook(code: int, held: Any) -> Any:
        return code, bytes(held)

    ours = codec_without_msgspec(hook)
    try:
        theirs = msgspec.msgpack.Decoder(ext_hook=hook).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        with pytest.raises(BadValue):
            ours(data)
        return
    if b"\xff" not in data:
        assert repr(ours(data)) == repr(theirs)


def codec_without_msgspec(hook: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "msgspec", None)
        return codec(nothing, hook)[1]


NUMERIC = (
    arrays.boolean_dtypes() | arrays.integer_dtypes() | arrays.unsigned_integer_dtypes() | arrays.floating_dtypes()
)
ARRAYS = arrays.arrays(NUMERIC, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
STATES = st.dictionaries(TEXT, PLAIN | ARRAYS | st.lists(ARRAYS, max_size=3), max_size=5)


def same(left: Any, right: Any) -> bool:
    """Tell whether two states are equal, byte order of arrays aside."""
    if isinstance(left, np.ndarray):
        little = left.astype(left.dtype.newbyteorder("<"))
        return bool(
            isinstance(right, np.ndarray)
            and little.dtype == right.dtype
            and left.shape == right.shape
            and little.tobytes() == right.tobytes()
        )
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@settings(deadline=None)
@given(STATES)
def test_a_state_comes_back_as_it_was_with_msgspec_and_without(state: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "msgspec", None)
        encode, decode = codec(values._pack_state, values._unpack_state)
    for written in (encode_state(state), encode(state)):
        assert same(state, decode_state(written))
        assert same(state, decode(written))
    found = decode_state(encode_state(state))
    for each in found.values():
        if isinstance(each, np.ndarray):
            assert each.flags.writeable
            assert each.base is None or each.base.base is None, "it must not hold the message"


@settings(deadline=None)
@given(STATES)
def test_a_state_travels_on_as_snapshots_do(state: Any) -> None:
    """What a worker left is told to other nodes: both read arrays alike."""
    told = decode_snapshot(encode_snapshot(decode_state(encode_state(state)), count=3, digest="d")).state
    assert same(state, decode_state(encode_state(told)))


@settings(deadline=None, max_examples=1000)
@given(st.binary(max_size=100))
def test_bytes_that_are_no_state_are_refused_as_that(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "msgspec", None)
        decode = codec(values._pack_state, values._unpack_state)[1]
    for read in (decode_state, decode):
        try:
            read(data)
        except BadValue:
            continue


@settings(deadline=None, max_examples=500)
@given(st.text(max_size=12), st.lists(st.integers(-2, 2**64), max_size=5) | st.none(), st.binary(max_size=50))
def test_an_array_in_a_state_that_is_none_is_refused_as_that(kind: str, shape: Any, data: bytes) -> None:
    try:
        inner = msgspec.msgpack.encode([kind, shape, data])
    except (UnicodeEncodeError, OverflowError):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "msgspec", None)
        decode = codec(values._pack_state, values._unpack_state)[1]
    for read in (decode_state, decode):
        try:
            found = read(msgspec.msgpack.encode(msgspec.msgpack.Ext(values.ARRAY, inner)))
        except BadValue:
            continue
        assert found.dtype.kind in "biufc"


@pytest.mark.parametrize(
    "state",
    [
        object(),
        np.array([object()]),
        np.array(["text"]),
        np.array([(1, 2)], "i4,i4"),
        2**64,
        {"deep": [1, object()]},
        "\udc80",
        np.zeros(1, "M8[s]"),
        np.longdouble(1),
    ],
    ids=[
        "an object",
        "objects",
        "text",
        "records",
        "a large number",
        "inside",
        "a surrogate",
        "times",
        "a long double",
    ],
)
def test_what_no_state_is_is_refused_as_that(state: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "msgspec", None)
        encode = codec(values._pack_state, values._unpack_state)[0]
    for write in (encode_state, encode):
        with pytest.raises(BadValue):
            write(state)


def test_a_state_too_deep_is_refused_as_that() -> None:
    state: Any = None
    for _ in range(100_000):
        state = [state]
    with pytest.raises(BadValue):
        encode_state(state)
    with pytest.raises(BadValue):
        decode_state(b"\x91" * 100_000 + b"\xc0")
    with pytest.raises(ValueError, match="truncated"):
        msgpack.unpack(b"\x91" * 100_000 + b"\xc0", extension)
    while state:  # Python frees what is nested so deep by recursion.
        state = state.pop()
