"""Messages cut out of bodies, and the small texts of gRPC's headers."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.errors import InvalidRequest, MeshError, TooLarge
from mesh.wire.grpc_framing import (
    BadMessage,
    Deframer,
    binary_text,
    binary_values,
    check_encoding,
    framed,
    pack_prefix,
    percent_decoded,
    percent_encoded,
    timeout_s,
    timeout_text,
)

messages = st.lists(st.binary(max_size=50), max_size=6)


@given(messages, st.lists(st.integers(1, 30), min_size=1, max_size=5), st.booleans())
def test_a_body_cut_anywhere_gives_its_messages(sent: list[bytes], sizes: list[int], keep: bool) -> None:
    body = b"".join(map(framed, sent))
    deframer, found, position, number = Deframer(1000, keep_prefix=keep), [], 0, 0
    while position < len(body):
        size = sizes[number % len(sizes)]
        found += deframer.feed(body[position : position + size])
        position, number = position + size, number + 1
    assert found == (list(map(framed, sent)) if keep else sent)
    assert deframer.held == 0


@given(messages, st.integers(0, 400), st.sampled_from([b"gzip", b"deflate"]))
def test_compressed_messages_come_out_as_they_were(sent: list[bytes], cut: int, encoding: bytes) -> None:
    pack = gzip.compress if encoding == b"gzip" else zlib.compress
    body = b"".join(pack_prefix(1, len(packed)) + packed for packed in map(pack, sent))
    deframer = Deframer(1000, compression=check_encoding(encoding))
    assert deframer.feed(body[:cut]) + deframer.feed(body[cut:]) == sent


@given(st.binary(max_size=100), st.integers(0, 100))
def test_any_bytes_are_messages_or_an_error(body: bytes, cut: int) -> None:
    deframer = Deframer(50, compression=31)
    try:
        for part in (body[:cut], body[cut:]):
            assert all(len(message) <= 50 for message in deframer.feed(part))
    except MeshError as error:
        assert isinstance(error, BadMessage | TooLarge)  # noqa: PT017


def test_a_message_above_the_limit_is_refused_before_it_comes() -> None:
    with pytest.raises(TooLarge, match="1001 bytes, at most 1000"):
        Deframer(1000).feed(pack_prefix(0, 1001))


def test_a_small_message_that_expands_beyond_the_limit_is_refused() -> None:
    packed = gzip.compress(bytes(1_000_000))
    with pytest.raises(TooLarge, match="after decompression"):
        Deframer(10_000, compression=31).feed(pack_prefix(1, len(packed)) + packed)


def test_compression_that_was_not_named_is_an_error() -> None:
    with pytest.raises(BadMessage, match="named no compression"):
        Deframer(1000).feed(pack_prefix(1, 1) + b"x")


def test_an_unknown_encoding_says_which_ones_are_known() -> None:
    with pytest.raises(MeshError, match="'snappy' is not one of identity,gzip,deflate"):
        check_encoding(b"snappy")


@given(st.floats(1e-6, 1e9))
def test_a_timeout_that_is_sent_is_never_longer_and_never_nothing(seconds: float) -> None:
    sent = timeout_text(seconds)
    assert 0 < timeout_s(sent) <= max(seconds, 1e-6) * (1 + 1e-9)
    assert len(sent) <= 9


@pytest.mark.parametrize("text", [b"", b"S", b"1", b"123456789S", b"-1S", b"1x", b"1.5S"])
def test_a_bad_timeout_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="1 to 8 digits"):
        timeout_s(text)


@given(st.text())
def test_a_status_text_comes_back(text: str) -> None:
    sent = percent_encoded(text)
    assert all(0x20 <= byte <= 0x7E for byte in sent)
    assert percent_decoded(sent) == text.encode("utf-8", "replace").decode()


@given(st.binary())
def test_any_status_text_can_be_read(raw: bytes) -> None:
    assert isinstance(percent_decoded(raw), str)


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=4))
def test_binary_values_come_back_alone_and_joined(values: list[bytes]) -> None:
    assert binary_values(b",".join(map(binary_text, values))) == values
