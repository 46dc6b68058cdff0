"""Targets for the wire. Where bytes come in pieces, the first byte says how large the pieces are (0: all at once).

Whatever is read must be the same however it was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import cast

import numpy as np
from hpack import Decoder
from hpack.exceptions import HPACKError

from mesh.api.question import decode
from mesh.api.raw_places import raws_of
from mesh.core.errors import InvalidRequest, MeshError, TooLarge
from mesh.core.types import Dtype, ModelName, ModelVersion, TensorSpec, Version
from mesh.node.answer import encode, wanted_outputs
from mesh.node.plans import Plans
from mesh.node.runtimes.base import Tensors
from mesh.node.served import Served
from mesh.node.validate import read_inputs
from mesh.wire.connection import Connection
from mesh.wire.fields import Block
from mesh.wire.flow import Bounds
from mesh.wire.frames import PREFACE, ConnectionFault, ErrorCode, StreamFault, settings
from mesh.wire.grpc_framing import (
    BadMessage,
    Deframer,
    binary_text,
    binary_values,
    percent_decoded,
    percent_encoded,
    timeout_s,
    timeout_text,
)
from mesh.wire.header_cache import HeaderReader, _raises_table
from mesh.wire.heads import AnswerHead, answer_head, request_block, request_head, trailers
from mesh.wire.peek import PeekError, peek, peek_front
from mesh.wire.streams import Stream
from mesh.wire.windows import OUT_BYTES
from tests.wire.pair import HEADERS_BLOCK, TRAILERS, check_windows

LIMIT = 64 * 1024
MESSAGE_LIMIT = 10_000
BOUNDS = Bounds(max_streams=8)
HELD = 64 * 1024 + 2 * BOUNDS.max_frame
"""Bytes of an unfinished frame and block that a connection may hold."""
SAID_PER_BYTE = 40
"""An answer of a call that came in 10 bytes is longer than these; more would be an amplifier."""


def pieces(data: bytes) -> tuple[list[bytes], bytes]:
    """Return what follows the first byte, cut as that says, and whole."""
    step, rest = data[0], data[1:]
    return [rest[at : at + step] for at in range(0, len(rest), step)] if step else [rest], rest


class Call:
    """Either side of a call: keeps what it is told, as text that can be compared, and answers when asked."""

    def __init__(self, connection: Connection, *, answers: bool) -> None:
        self.connection = connection
        self.answers = answers
        self.heads: list[tuple[tuple[bytes, bytes], ...]] = []
        self.messages: list[bytes] = []
        self.body = b""
        self.state = "open"
        self.deframer: Deframer | None = Deframer(MESSAGE_LIMIT)

    def headers(self, stream: Stream, block: Block, end: bool) -> None:
        """Take headers or trailers."""
        assert self.state == "open"
        self.heads.append(tuple([(field.name, field.value) for field in block.fields]))
        if not self.answers:
            head = answer_head(block)
            assert isinstance(head.metadata, tuple)
            if head.compression:
                self.deframer = Deframer(MESSAGE_LIMIT, compression=head.compression)
        if end:
            self.ended(stream)

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Take data as a server does."""
        assert self.state == "open"
        self.body += data
        if self.deframer is not None:
            try:
                self.messages += self.deframer.feed(data)
            except (TooLarge, BadMessage):
                self.deframer = None
            else:
                assert self.deframer.held <= MESSAGE_LIMIT + 5
        self.connection.consumed(stream, len(data))
        if end:
            self.ended(stream)

    def ended(self, stream: Stream) -> None:
        """Answer."""
        self.state = "ended"
        if self.answers:
            self.connection.answer(stream, HEADERS_BLOCK, b"\0\0\0\0\1x", TRAILERS)

    def reset(self, stream: Stream, code: int) -> None:
        """Keep the code."""
        assert not self.state.startswith("reset")
        self.state = f"reset {code}"

    def silent(self, stream: Stream, *, long: bool) -> None:
        """Wait."""

    def drained(self, stream: Stream) -> None:
        """Nothing waits for it."""

    def told(self) -> tuple[object, ...]:
        """Return what must not depend on how the bytes were cut."""
        if self.state.startswith("reset"):
            return (self.state, self.heads)  # How much came of a body before its fault does.
        return (self.state, self.heads, self.body, self.messages if self.deframer is not None else None)


def accepted(log: dict[int, Call], connection: Connection, stream: Stream, block: Block, end: bool) -> Call:
    """Take a call as the server does."""
    head = request_head(block)
    if head.malformed:
        raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, head.malformed)
    stream.body_left = head.content_length
    call = log[stream.id] = Call(connection, answers=True)
    call.deframer = Deframer(MESSAGE_LIMIT, compression=head.compression)
    with suppress(InvalidRequest):
        assert isinstance(head.metadata, tuple)
    if head.refused is not None or head.http_error or block.size > connection.bounds.max_header_list:
        connection.send_headers(stream, trailers(3, str(head.refused)), end=True)
    call.headers(stream, block, end)
    return call


def run(connection: Connection, parts: list[bytes]) -> int:
    """Feed `parts`, check what holds at any time, and return the bytes that were said to them."""
    said = 0
    for part in parts:
        connection.receive(part, 1.0)
        assert len(connection._tail) + connection._block_bytes <= HELD
        assert len(connection.streams) <= max(connection.bounds.max_streams, 3)
        assert not (connection.broken and (connection.streams or connection.waiting))
        check_windows(connection)
        said += sum(map(len, connection.out))
        connection.out = []
        connection.make_room(OUT_BYTES)
    return said


def fuzz_server(data: bytes) -> None:
    """A server's connection behind a client's preface; an odd second byte: before it."""
    if len(data) < 2:
        return
    cut, whole = pieces(data[:1] + data[2:])
    start = [] if data[1] & 1 else [PREFACE + settings({})]
    results = []
    for parts in (cut, [whole]):
        log: dict[int, Call] = {}

        def accept(connection: Connection, stream: Stream, block: Block, end: bool) -> Call:
            return accepted(log, connection, stream, block, end)  # noqa: B023 - called in this turn only

        connection = Connection(BOUNDS, accept=accept)
        connection.greet()
        said = run(connection, start + parts)
        assert said <= 1000 + SAID_PER_BYTE * len(data)
        broken = connection.broken and (connection.broken.code, connection.broken.why)
        results.append((broken, {number: call.told() for number, call in log.items()}))
    assert results[0] == results[1]


def fuzz_client(data: bytes) -> None:
    """A client's connection with three calls, behind a server's settings."""
    if not data:
        return
    cut, whole = pieces(data)
    results = []
    for parts in (cut, [whole]):
        connection = Connection(BOUNDS)
        connection.greet()
        connection.receive(settings({}), 1.0)
        log: dict[int, Call] = {}
        for number, body in ((1, b"\0\0\0\0\0"), (3, b""), (5, b"\0\0\1\0\0" + b"x" * 65_536)):
            log[number] = Call(connection, answers=False)
            connection.call(REQUEST, log[number], body)
        run(connection, [b"", *parts])
        broken = connection.broken and (connection.broken.code, connection.broken.why)
        results.append((broken, {number: call.told() for number, call in log.items()}))
    assert results[0] == results[1]


REQUEST = request_block("/s/M", "here", "http")


def fuzz_headers(data: bytes) -> None:
    """Header blocks, each behind its length; a block that stands alone is read as hpack reads it."""
    reader = HeaderReader(LIMIT)
    if data[:1] and data[0] & 1:
        reader.read(b"\x20")
    position = 1
    while position < len(data):
        size = data[position]
        block = data[position + 1 : position + 1 + size]
        position += 1 + size
        # One that raises the table is read with a table, which h2spec asks for.
        alone = reader.stands_alone and not _raises_table(block)
        try:
            pairs = [(field.name, field.value) for field in reader.read(block).fields]
        except ConnectionFault as fault:
            if fault.code not in {ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM}:
                raise
            if alone:
                assert _by_hpack(block) is None
            return
        if alone:
            assert pairs == _by_hpack(block)


def _by_hpack(data: bytes) -> list[tuple[bytes, bytes]] | None:
    decoder = Decoder(2 * LIMIT)
    decoder.max_allowed_table_size = 0
    decoder.header_table_size = 0
    try:
        return [(bytes(name), bytes(value)) for name, value in decoder.decode(data, raw=True)]
    except (HPACKError, IndexError, ValueError, TypeError):
        return None


def fuzz_heads(data: bytes) -> None:
    """What a block means, and the texts in it."""
    try:
        block = HeaderReader(LIMIT).read(b"\x20" + data)
    except ConnectionFault:
        return
    head, answer = request_head(block), AnswerHead(block)
    with suppress(InvalidRequest):
        assert isinstance(head.metadata, tuple)
    assert isinstance(answer.metadata, tuple)
    for field in block.fields:
        text = percent_decoded(field.value)
        if "\ufffd" not in text:
            assert percent_decoded(percent_encoded(text)) == text
        with suppress(InvalidRequest):
            values = binary_values(field.value)
            assert binary_values(b",".join(map(binary_text, values))) == values
        with suppress(InvalidRequest):
            assert timeout_s(timeout_text(timeout_s(field.value))) > 0


def fuzz_deframer(data: bytes) -> None:
    """A body; the second byte says which compression, and whether prefixes are kept."""
    if len(data) < 2:
        return
    cut, whole = pieces(data[:1] + data[2:])
    compression, keep = (0, 15, 31, 31)[data[1] & 3], bool(data[1] & 4)
    results: list[tuple[list[bytes], int] | str] = []
    for parts in (cut, [whole]):
        deframer = Deframer(MESSAGE_LIMIT, compression=compression, keep_prefix=keep)
        messages: list[bytes] = []
        try:
            for part in parts:
                messages += deframer.feed(part)
                assert deframer.held <= MESSAGE_LIMIT + 5
        except (TooLarge, BadMessage) as error:
            results.append(str(error))
        else:
            results.append((messages, deframer.held))
        assert all(len(message) <= MESSAGE_LIMIT + 5 for message in messages)
    assert results[0] == results[1]


def fuzz_peek_front(data: bytes) -> None:
    """The router's first look at a request: what `peek` reads, and never another of the same bytes cut short."""
    with suppress(PeekError):
        front = peek_front(data, 0, whole=True)
        assert front == peek(data)
    with suppress(PeekError):
        early = peek_front(data, 0, whole=False)
        if early is not None:
            assert peek_front(data + b"\x3a\x00" * 8, 0, whole=False) == early


def fuzz_texts(data: bytes) -> None:
    """Errors of bad texts are the mesh's own."""
    with suppress(MeshError):
        timeout_s(data)
    with suppress(MeshError):
        binary_values(data)
    percent_decoded(data)


SPECS = (TensorSpec("x", Dtype.FP32, (-1, 2)), TensorSpec("t", Dtype.INT8, (-1,), optional=True))
OUTPUTS = {"y": TensorSpec("y", Dtype.FP32, (-1,))}


def served() -> Served:
    """Return what a plan looks at of a copy."""
    model = ModelVersion(ModelName("m"), Version("1"), "onnx", "", "", 0)
    loaded = SimpleNamespace(outputs=tuple(OUTPUTS.values()))
    return cast("Served", SimpleNamespace(model=model, inputs=SPECS, outputs=OUTPUTS, labels=(), loaded=loaded))


PLANS = Plans()
SERVED = served()


def fuzz_plans(data: bytes) -> None:
    """A request that goes the long way and is learned; what plans read of it and of those before is the same."""
    for learn in (False, True):
        plan = PLANS.find(data)
        arrays = plan.read(data) if plan is not None else None
        if plan is None or arrays is None:
            if learn:
                return
            with suppress(InvalidRequest):
                request = decode(data)
                inputs, rows = read_inputs(request, SPECS, "m", 0)
                wanted = wanted_outputs(request, SERVED)
                PLANS.learn(data, request, SERVED, wanted=wanted, inputs=inputs, rows=rows, raws=raws_of(data, request))
            continue
        request = decode(data)
        inputs, rows = read_inputs(request, SPECS, "m", 0)
        assert (list(inputs), rows, request.model_name) == (list(arrays), plan.rows, plan.model)
        for name, array in inputs.items():
            read = arrays[name]
            assert (array.dtype, array.shape, array.tobytes()) == (read.dtype, read.shape, read.tobytes())
        outputs: Tensors = {"y": np.arange(len(data), dtype=np.float32)}
        parts = plan.write(outputs)
        assert parts is not None
        assert b"".join(parts) == encode(request, SERVED, outputs, plan.wanted).SerializeToString()


WIRE_TARGETS: dict[str, Callable[[bytes], None]] = {
    "server": fuzz_server,
    "client": fuzz_client,
    "blocks": fuzz_headers,
    "heads": fuzz_heads,
    "deframer": fuzz_deframer,
    "peek_front": fuzz_peek_front,
    "texts": fuzz_texts,
    "plans": fuzz_plans,
}
