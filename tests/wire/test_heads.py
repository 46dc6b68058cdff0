from __future__ import annotations

from itertools import count
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.errors import Code, InvalidRequest
from mesh.wire.fields import Block
from mesh.wire.grpc_framing import timeout_text
from mesh.wire.header_cache import HeaderReader, encode, encode_all
from mesh.wire.heads import (
    RequestHead,
    answer_head,
    metadata_block,
    request_block,
    request_head,
    timeout_field,
    trailers,
)

Pairs = list[tuple[bytes, bytes]]

USUAL: Pairs = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/s/M"),
    (b":authority", b"here"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


def block_of(pairs: Pairs) -> Block:
    return HeaderReader(1 << 16).read(b"\x20" + encode_all(pairs))


def stemmed(stem: Pairs, rest: Pairs) -> Block:
    """Return the block of `stem` and `rest`, read by one that has seen `stem` begin blocks before."""
    reader = HeaderReader(1 << 16)
    reader.read(b"\x20")
    # A value never seen anywhere makes what stands before it the stem.
    for _ in range(2):
        reader.read(encode_all([*stem, (b"unheard-of", b"%d" % next(COUNTER))]))
    # Not through the cache of whole blocks, where it may be as another connection read it.
    return reader._split(encode_all([*stem, *rest]))


COUNTER: Final = count()


def said(head: RequestHead) -> tuple[object, ...]:
    refused = head.refused and (head.refused.code, head.refused.message)
    own = [(field.name, field.value) for field in head.own]
    known = (head.path, head.authority, head.timeout_s, head.compression, head.content_length)
    return (*known, own, head.malformed, head.http_error, refused)


fields = st.tuples(
    st.sampled_from(
        b""":method :scheme :path :authority :status te content-type content-length grpc-timeout
        grpc-encoding connection x-mine x-mine-bin grpc-own Upper""".split()
    )
    | st.just(b""),
    st.sampled_from([b"POST", b"http", b"/s/M", b"trailers", b"application/grpc", b"7", b"1S", b"gzip", b"br", b""])
    | st.binary(max_size=12),
)


@given(st.integers(3, len(USUAL)), st.lists(fields, max_size=6), st.lists(fields, max_size=3))
def test_a_head_is_the_same_with_and_without_a_stem(cut: int, more: Pairs, odd: Pairs) -> None:
    stem = [*USUAL[:cut], *odd]
    with_stem, without = stemmed(stem, more), block_of([*stem, *more])
    assert said(request_head(without)) == said(request_head(with_stem))


def test_a_head_made_with_a_stem_leaves_the_stem_as_it_was() -> None:
    block = stemmed(USUAL, [(b"x-a", b"1")])
    assert block.stem is not None
    assert request_head(block).get(b"x-a") == b"1"
    reader_stem = block.stem
    again = Block((*reader_stem.fields, *block_of([(b"x-b", b"2")]).fields), 0, reader_stem)
    assert request_head(again).get(b"x-a") is None


def test_the_block_of_a_request_is_read_as_it_was_asked_for() -> None:
    head = request_head(HeaderReader(1 << 16).read(b"\x20" + request_block("/s/M", "here:1", "https")))
    assert (head.malformed, head.http_error, head.path, head.authority) == ("", b"", b"/s/M", b"here:1")
    assert head.metadata == ()


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([pair for pair in USUAL if pair[0] != b":method"], "needs :method"),
        ([pair for pair in USUAL if pair[0] != b":scheme"], "needs :method, :scheme"),
        ([pair for pair in USUAL if pair[0] != b":path"], "and :path"),
        ([*USUAL[:2], (b":path", b""), *USUAL[3:]], "and :path"),
        ([*USUAL, (b":path", b"/s/N")], "where it may not be"),
        ([USUAL[0], *USUAL], "where it may not be"),
        ([*USUAL[:4], (b":status", b"200"), *USUAL[4:]], "where it may not be"),
        ([*USUAL[:4], (b":own", b"1"), *USUAL[4:]], "is not allowed"),
        ([*USUAL, (b"connection", b"close")], "is not allowed"),
        ([*USUAL, (b"te", b"gzip")], "is not allowed"),
        ([*USUAL, (b"X-Upper", b"1")], "is not allowed"),
        ([*USUAL, (b"", b"1")], "is not allowed"),
        ([*USUAL, (b"x", b"a\r\nb")], "is not allowed"),
        ([*USUAL, (b"x", b"a\0b")], "is not allowed"),
        ([*USUAL, (b"content-length", b"-1")], "content-length is no number"),
        ([*USUAL, (b"content-length", b"")], "content-length is no number"),
        ([*USUAL, (b"content-length", b"9" * 5000)], "content-length is no number"),
    ],
)
def test_a_malformed_head_says_why(pairs: Pairs, why: str) -> None:
    assert why in request_head(block_of(pairs)).malformed


@pytest.mark.parametrize(
    ("pairs", "status"),
    [
        ([(b":method", b"GET"), *USUAL[1:]], b"405"),
        ([*USUAL[:5]], b"415"),
        ([*USUAL[:5], (b"content-type", b"application/grpc-web")], b"415"),
        ([*USUAL[:5], (b"content-type", b"application/grpc+proto")], b""),
        ([*USUAL[:5], (b"content-type", b"application/grpc;charset=utf-8")], b""),
    ],
)
def test_a_request_that_is_not_grpc_gets_an_http_status(pairs: Pairs, status: bytes) -> None:
    head = request_head(block_of(pairs))
    assert ("", status) == (head.malformed, head.http_error)


def test_an_unknown_compression_and_a_bad_timeout_are_refused_in_grpcs_words() -> None:
    refused = request_head(block_of([*USUAL, (b"grpc-encoding", b"br")])).refused
    assert refused is not None
    assert refused.code is Code.UNIMPLEMENTED
    refused = request_head(block_of([*USUAL, (b"grpc-timeout", b"1h")])).refused
    assert refused is not None
    assert refused.code is Code.INVALID_ARGUMENT


def test_metadata_keeps_its_order_and_binary_values_are_decoded() -> None:
    head = request_head(block_of([*USUAL, (b"b", b"1"), (b"a-bin", b"AAE,Ag=="), (b"b", b"2"), (b"grpc-x", b"no")]))
    assert head.metadata == (("b", "1"), ("a-bin", b"\0\1"), ("a-bin", b"\2"), ("b", "2"))
    assert head.get(b"b") == b"1"
    with pytest.raises(InvalidRequest, match="no base64"):
        _ = request_head(block_of([*USUAL, (b"a-bin", b"!")])).metadata


RESERVED: Final = {"te", "connection", "upgrade"}
names: Final = st.from_regex(r"[a-z][a-z0-9._-]{0,9}", fullmatch=True).filter(
    lambda name: not name.startswith("grpc-") and not name.endswith("-bin") and name not in RESERVED
)
texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)


@given(st.lists(st.tuples(names, texts) | st.tuples(names.map("{}-bin".format), st.binary(max_size=20)), max_size=5))
def test_metadata_comes_back_as_it_was_given(metadata: list[tuple[str, str | bytes]]) -> None:
    block = HeaderReader(1 << 16).read(b"\x20" + metadata_block(tuple(metadata)))
    assert tuple(metadata) == answer_head(block).metadata


@given(st.integers(0, 16), st.text(max_size=30))
def test_a_status_and_its_message_come_back(code: int, message: str) -> None:
    head = answer_head(HeaderReader(1 << 16).read(b"\x20" + trailers(code, message)))
    assert (code, message.encode("utf-8", "replace").decode()) == (head.status, head.message)


@pytest.mark.parametrize(
    ("pairs", "status"),
    [
        ([(b":status", b"200"), (b"content-type", b"application/grpc")], None),
        ([(b":status", b"200"), (b"content-type", b"text/html")], Code.UNKNOWN),
        ([(b":status", b"503"), (b"content-type", b"text/html")], Code.UNAVAILABLE),
        ([(b":status", b"404")], Code.UNIMPLEMENTED),
        ([(b":status", b"teapot")], Code.UNKNOWN),
        ([(b":status", b"503"), (b"grpc-status", b"5")], Code.NOT_FOUND),
        ([(b"grpc-status", b"17")], Code.UNKNOWN),
        ([(b"grpc-status", b"-1")], Code.UNKNOWN),
        ([(b"grpc-status", b"0" * 5000)], Code.UNKNOWN),
        ([(b"x", b"1")], None),
    ],
)
def test_an_answer_has_the_status_that_grpcs_mapping_gives(pairs: Pairs, status: int | None) -> None:
    assert status == answer_head(block_of(pairs)).status


@given(st.lists(fields, max_size=8))
def test_any_fields_make_a_request_head_and_an_answer_head(pairs: Pairs) -> None:
    assert isinstance(request_head(block_of(pairs)), RequestHead)
    assert isinstance(answer_head(block_of(pairs)).metadata, tuple)


@given(st.floats(1e-6, 1e9, allow_nan=False))
def test_a_timeouts_field_is_what_hpack_would_write(seconds: float) -> None:
    written = timeout_field(seconds)
    assert encode(b"grpc-timeout", timeout_text(seconds)) == written
    assert [field.name for field in HeaderReader(1000).read(written).fields] == [b"grpc-timeout"]
