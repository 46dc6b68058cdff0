"""HPACK through the cache is HPACK: what `hpack` reads, it reads, and nothing else."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hypothesis import given
from hypothesis import strategies as st

from mesh.wire.fields import Role
from mesh.wire.frames import ConnectionFault, ErrorCode
from mesh.wire.header_cache import VARYING, HeaderReader, encode, encode_all

names = st.sampled_from([b"x-a", b"x-b", b"traceparent", b"grpc-timeout", b"te", b"user-agent", b"k" * 130])
values = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([1, 126, 127, 128, 300]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    st.sampled_from([b"trailers", b"1S", b"same"]),
)
CALL = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/B"), (b":authority", b"x")]
calls = st.lists(st.lists(st.tuples(names, values, st.booleans()), max_size=6), min_size=1, max_size=6)


def standing_alone() -> HeaderReader:
    reader = HeaderReader(65_536)
    reader.read(b"\x20")
    assert reader.stands_alone
    return reader


def pairs(reader: HeaderReader, block: bytes) -> list[tuple[bytes, bytes]]:
    return [(field.name, field.value) for field in reader.read(block).fields]


@given(calls, st.booleans())
def test_blocks_read_as_hpack_reads_them(calls: list[list[tuple[bytes, bytes, bool]]], huffman: bool) -> None:
    reader, encoder = standing_alone(), Encoder()
    encoder.header_table_size = 0
    for call in calls:
        headers = [(name, value, False) for name, value in CALL] + call
        block = encoder.encode(headers, huffman=huffman)
        expected = [(name, value) for name, value, _ in headers]
        # Twice: the second time from the cache, whatever of it is there.
        assert pairs(reader, block) == pairs(reader, block) == expected
        raw = b"".join(field.raw for field in reader.read(block).fields)
        assert [(bytes(name), bytes(value)) for name, value in Decoder().decode(raw, raw=True)] == expected


@given(calls, st.booleans())
def test_a_peer_may_use_its_table_until_it_gives_it_up(
    calls: list[list[tuple[bytes, bytes, bool]]], gives_up: bool
) -> None:
    reader, encoder = HeaderReader(65_536), Encoder()
    for number, call in enumerate(calls):
        if gives_up and number == 2:
            encoder.header_table_size = 0
        headers = [(name, value, False) for name, value in CALL] + call
        assert pairs(reader, encoder.encode(headers)) == [(name, value) for name, value, _ in headers]
    assert reader.stands_alone is (gives_up and len(calls) > 2)


def test_a_table_that_is_raised_again_is_followed() -> None:
    reader, encoder = standing_alone(), Encoder()
    encoder.header_table_size = 0
    reader.read(encoder.encode(CALL))
    encoder.header_table_size = 128
    for _ in range(3):
        assert pairs(reader, encoder.encode([*CALL, (b"x-a", b"1")])) == [*CALL, (b"x-a", b"1")]
    assert not reader.stands_alone


@given(st.binary(max_size=200))
def test_any_bytes_are_headers_or_a_fault(block: bytes) -> None:
    reader = standing_alone()
    decoder = Decoder()
    decoder.max_allowed_table_size = 4096
    decoder.header_table_size = 0
    try:
        expected = [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    except (HPACKError, IndexError, ValueError, TypeError):
        with pytest.raises(ConnectionFault) as caught:
            reader.read(block)
        assert caught.value.code is ErrorCode.COMPRESSION_ERROR
        return
    try:
        assert pairs(reader, block) == expected
    except ConnectionFault as fault:
        # Stricter than hpack: a number of more than 32 bits, a table size above 4,096.
        assert fault.code is ErrorCode.COMPRESSION_ERROR  # noqa: PT017


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_a_connection_with_a_table_takes_any_bytes_too(blocks: list[bytes]) -> None:
    reader = HeaderReader(65_536)
    try:
        for block in blocks:
            reader.read(block)
    except ConnectionFault as fault:
        assert fault.code in {ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM}  # noqa: PT017


def test_a_name_whose_values_always_differ_reads_right_after_it_is_no_longer_kept() -> None:
    reader = standing_alone()
    for number in range(2 * VARYING):
        block = encode_all([*CALL, (b"x-request-id", b"%d" % number), (b"grpc-timeout", b"%dm" % number)])
        assert pairs(reader, block)[4:] == [(b"x-request-id", b"%d" % number), (b"grpc-timeout", b"%dm" % number)]


def test_a_list_of_headers_far_above_the_limit_is_left_out() -> None:
    reader = HeaderReader(1000)
    reader.read(b"\x20")
    block = reader.read(encode(b"x", b"y" * 100) * 40)
    assert block.fields == ()
    assert block.size > 2000


@pytest.mark.parametrize("name", [b"X-Upper", b"connection", b"upgrade", b"sp ace", b""])
def test_names_that_http2_forbids_are_bad(name: bytes) -> None:
    assert standing_alone().read(b"\0" + bytes((len(name),)) + name + b"\x01v").fields[0].role == Role.BAD


@pytest.mark.parametrize("value", [b"a\nb", b"a\rb", b"a\0b"])
def test_values_that_http_forbids_are_bad(value: bytes) -> None:
    assert standing_alone().read(b"\0\x01x\x03" + value).fields[0].role == Role.BAD
