from __future__ import annotations

import base64
import gzip
import math
import sys
import zlib
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.core.errors import Code, InvalidRequest, TooLarge, Unimplemented
from mesh.wire.frames import ErrorCode
from mesh.wire.grpc_framing import (
    SMALL_INFLATED,
    STEP,
    BadMessage,
    Deframer,
    Packed,
    binary_text,
    binary_values,
    check_encoding,
    code_of_http,
    code_of_reset,
    framed,
    pack_prefix,
    percent_decoded,
    percent_encoded,
    timeout_s,
    timeout_text,
)

GZIP, DEFLATE = check_encoding(b"gzip"), check_encoding(b"deflate")
LIMIT = 1000


def compressed(message: bytes, bits: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, bits)
    data = packer.compress(message) + packer.flush()
    return pack_prefix(1, len(data)) + data


messages = st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=5)


@given(messages, st.sampled_from([GZIP, DEFLATE]), st.booleans(), st.lists(st.integers(0, 400), max_size=8))
def test_messages_are_the_same_however_their_bytes_are_cut(
    given_messages: list[tuple[bytes, bool]], bits: int, keep_prefix: bool, cuts: list[int]
) -> None:
    data = b"".join(compressed(message, bits) if packed else framed(message) for message, packed in given_messages)
    expected = [framed(message) if keep_prefix else message for message, _ in given_messages]
    for ends in (sorted(min(cut, len(data)) for cut in cuts), range(len(data) + 1)):
        deframer = Deframer(LIMIT, compression=bits, keep_prefix=keep_prefix)
        found: list[bytes] = []
        start = 0
        for end in (*ends, len(data)):
            found += deframer.feed(data[start:end])
            start = end
        assert (expected, 0) == (found, deframer.held)


@given(st.binary(max_size=30), st.integers(0, 34))
def test_what_is_held_is_what_came_of_a_message_that_is_not_whole(message: bytes, cut: int) -> None:
    data = framed(message)
    deframer = Deframer(LIMIT)
    whole = deframer.feed(data[:cut])
    assert (0 if whole else len(data[:cut])) == deframer.held


def test_a_message_that_comes_in_tiny_pieces_is_not_kept_as_tiny_objects() -> None:
    deframer = Deframer(100_000)
    message = bytes(range(250)) * 200
    data = framed(message)
    for start in range(0, len(data) - 2, 2):
        assert deframer.feed(data[start : start + 2]) == []
        assert sum(map(sys.getsizeof, deframer._parts)) <= 2 * deframer.held + 4096
    assert [message] == deframer.feed(data[start + 2 :])


@pytest.mark.parametrize("cut", [5, 4, 1])
def test_a_message_above_the_limit_is_refused_at_its_prefix(cut: int) -> None:
    prefix = pack_prefix(0, LIMIT + 1)
    deframer = Deframer(LIMIT)
    with suppress(IndexError):
        assert deframer.feed(prefix[: 5 - cut]) == []
    with pytest.raises(TooLarge):
        deframer.feed(prefix[5 - cut :])
    assert Deframer(LIMIT).feed(framed(b"x" * LIMIT)) == [b"x" * LIMIT]


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    deframer = Deframer(LIMIT * 100, compression=GZIP)
    (packed,) = deframer.feed(compressed(b"\0" * 10_000_000, GZIP))
    assert packed.__class__ is Packed
    inflation = deframer.inflation(packed)
    with pytest.raises(TooLarge, match="after decompression"):
        inflation.step()
    assert inflation.size <= STEP
    with pytest.raises(TooLarge, match="after decompression"):
        Deframer(LIMIT, compression=GZIP).feed(compressed(b"\0" * (LIMIT + 1), GZIP))
    assert Deframer(LIMIT, compression=GZIP).feed(compressed(b"\0" * LIMIT, GZIP)) == [b"\0" * LIMIT]


@pytest.mark.parametrize("keep_prefix", [False, True])
@pytest.mark.parametrize("size", [SMALL_INFLATED - 1, SMALL_INFLATED, 2 * SMALL_INFLATED, STEP, STEP + 1, 3 * STEP])
def test_a_long_compressed_message_is_inflated_step_by_step(size: int, keep_prefix: bool) -> None:
    deframer = Deframer(size, compression=GZIP, keep_prefix=keep_prefix)
    message = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    (found,) = deframer.feed(compressed(message, GZIP))
    assert (found.__class__ is Packed) == (size > SMALL_INFLATED)
    if found.__class__ is Packed:
        inflation = deframer.inflation(found)
        before = 0
        while not inflation.done:
            inflation.step()
            assert inflation.size - before <= STEP
            before = inflation.size
        found = inflation.message()
    assert found == (framed(message) if keep_prefix else message)


PACKED = gzip.compress(b"abc", mtime=0)


@pytest.mark.parametrize(
    "data", [b"", b"x", PACKED[:-1], b"\0" + PACKED[1:], PACKED[:-2] + b"xx", PACKED + b"x", PACKED + PACKED]
)
def test_bytes_that_are_not_one_gzip_stream_are_no_message(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Deframer(LIMIT, compression=GZIP).feed(pack_prefix(1, len(data)) + data)


def test_a_compressed_message_without_an_encoding_and_another_protocol_are_refused() -> None:
    with pytest.raises(BadMessage, match="named no compression"):
        Deframer(LIMIT).feed(compressed(b"abc", GZIP))
    with pytest.raises(BadMessage, match="is this gRPC"):
        Deframer(LIMIT).feed(b"HTTP/1.1 400")


@given(st.lists(st.binary(max_size=40), max_size=6), st.sampled_from([0, GZIP, DEFLATE]))
def test_any_bytes_give_messages_or_one_of_two_errors(parts: list[bytes], bits: int) -> None:
    deframer = Deframer(LIMIT, compression=bits)
    with suppress(TooLarge, BadMessage):
        for part in parts:
            assert all(len(message) <= LIMIT for message in deframer.feed(part))
            assert deframer.held <= 5 + LIMIT


# -- timeouts ------------------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e8, allow_nan=False))
@example(0.1)
@example(99_999.9999)
@example(99_999_999.0)
def test_a_timeout_is_never_longer_than_asked_and_at_most_a_hundredth_shorter(seconds: float) -> None:
    text = timeout_text(seconds)
    assert 2 <= len(text) <= 9
    read = timeout_s(text)
    assert seconds * 0.99 - 1e-6 <= read <= seconds * (1 + 1e-12)
    assert read > 0


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9, -1e300, 1e300, math.inf])
def test_a_timeout_is_written_for_any_number(seconds: float) -> None:
    assert 0 < timeout_s(timeout_text(seconds)) <= max(seconds, 1e-6)


@pytest.mark.parametrize(
    ("text", "seconds"), [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9)]
)
def test_every_unit_of_a_timeout_is_read(text: bytes, seconds: float) -> None:
    assert seconds == pytest.approx(timeout_s(text))


@pytest.mark.parametrize("text", [b"", b"S", b"1", b"1s", b"123456789S", b"-1S", b"1.5S", b" 1S", b"1S ", b"\xb2S"])
def test_what_is_no_timeout_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        timeout_s(text)


@given(st.binary(max_size=12))
def test_any_bytes_are_a_timeout_or_refused(text: bytes) -> None:
    with suppress(InvalidRequest):
        assert timeout_s(text) >= 0


# -- texts ---------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("100% \0\n\x7f é 😀")
def test_a_status_message_comes_back_as_it_was(text: str) -> None:
    raw = percent_encoded(text)
    assert all(0x20 <= byte <= 0x7E for byte in raw)
    assert text == percent_decoded(raw)


@given(st.binary())
@example(b"%")
@example(b"%4")
@example(b"%4g%41%%41")
def test_any_bytes_are_read_as_some_message(raw: bytes) -> None:
    assert isinstance(percent_decoded(raw), str)


def test_what_is_no_escape_stays_as_it_is() -> None:
    assert percent_decoded(b"%zz%41%%4") == "%zzA%%4"


@given(st.lists(st.binary(), min_size=1))
def test_binary_values_come_back_padded_or_not_and_joined(values: list[bytes]) -> None:
    assert values == binary_values(b",".join(map(binary_text, values)))
    assert values == binary_values(b",".join(map(base64.b64encode, values)))


@given(st.binary())
def test_any_bytes_are_base64_or_refused(raw: bytes) -> None:
    with suppress(InvalidRequest):
        assert len(raw.split(b",")) == len(binary_values(raw))


# -- codes ---------------------------------------------------------------------------------------------------------


def test_encodings_resets_and_http_statuses_have_the_codes_that_grpc_gives_them() -> None:
    assert tuple(map(check_encoding, [b"", b"identity", b"gzip", b"deflate"])) == (0, 0, 31, 15)
    with pytest.raises(Unimplemented, match="'br'"):
        check_encoding(b"br")
    assert tuple(map(code_of_reset, [ErrorCode.REFUSED_STREAM, ErrorCode.CANCEL])) == (Code.UNAVAILABLE, Code.CANCELLED)
    assert tuple(map(code_of_reset, [0, 1 << 31])) == (Code.INTERNAL, Code.INTERNAL)
    assert tuple(map(code_of_http, [b"503", b"302"])) == (Code.UNAVAILABLE, Code.UNKNOWN)
