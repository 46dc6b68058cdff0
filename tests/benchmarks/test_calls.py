"""The bytes that our load client sends, read back by a decoder that is not ours."""

from __future__ import annotations

import hpack
import pytest

from benchmarks import h2
from benchmarks.calls import CallBytes, Ids, Job
from benchmarks.h2 import ProtocolFailed, Trailers

JOB = Job(
    address="127.0.0.1:1",
    method="/a.B/C",
    body=b"body",
    answer_bytes=4,
    count=1,
    connections=1,
    streams=1,
    window=1,
    streaming=False,
    unique=True,
)
SAME = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a.B/C"),
    (":authority", "127.0.0.1:1"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("user-agent", "mesh-bench/1"),
]


def fields(frame: bytes, decoder: hpack.Decoder) -> list[tuple[str, str]]:
    high, low, kind, flags, stream = h2.FRAME.unpack_from(frame)
    assert (high << 8 | low, kind, flags, stream) == (len(frame) - 9, h2.HEADERS, h2.END_HEADERS, 7)
    return [(str(name), str(value)) for name, value in decoder.decode(frame[9:])]


@pytest.mark.parametrize("table_bytes", [0, 100, 4096, 65536])
def test_every_call_has_the_same_fields_and_three_of_its_own(table_bytes: int) -> None:
    ids = Ids()
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = min(table_bytes, 4096)
    calls = CallBytes(JOB, ids, table_bytes=table_bytes)
    seen: set[tuple[str, ...]] = set()
    for _ in range(1000):
        found = fields(calls.next((7).to_bytes(4, "big")), decoder)
        assert found[: len(SAME)] == SAME
        (timeout, timeout_value), (trace, trace_value), (request, request_value) = found[len(SAME) :]
        assert (timeout, trace, request) == ("grpc-timeout", "traceparent", "x-request-id")
        assert 29_000_000 <= int(timeout_value.removesuffix("u")) < 30_000_000
        assert [len(part) for part in trace_value.split("-")] == [2, 32, 16, 2]
        assert len(request_value) == 32
        seen |= {(timeout_value,), (trace_value,), (request_value,)}
    assert len(seen) == 3000


def test_calls_of_two_connections_never_share_an_id() -> None:
    ids = Ids()
    assert len({ids.next() for _ in range(1000)}) == 1000


def test_a_later_call_is_a_byte_for_each_field_that_stays() -> None:
    first, later = h2.header_blocks(SAME[2:], table_bytes=4096)
    assert len(later) == len(SAME) < len(first)


@pytest.mark.parametrize("huffman", [True, False])
def test_success_is_read_from_trailers_however_they_are_coded(huffman: bool) -> None:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    Trailers().check(encoder.encode([("grpc-status", "0"), ("grpc-message", "")], huffman=huffman))


@pytest.mark.parametrize("status", ["1", "00", "14"])
def test_another_status_than_0_is_no_success(status: str) -> None:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    with pytest.raises(ProtocolFailed, match=f"got .*{status}"):
        Trailers().check(encoder.encode([("grpc-status", status)], huffman=False))


def test_a_block_that_needs_a_table_is_refused() -> None:
    with pytest.raises(ProtocolFailed, match="no table"):
        Trailers().check(bytes([0xC0]))
