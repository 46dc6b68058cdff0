"""The targets. Each takes any bytes and returns, or raises because a parser broke its promise.

A parser raises its own error for what it refuses, and never another one.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from google.protobuf.message import DecodeError

from mesh.api.carried import read_tensors
from mesh.api.messages import InferTensorContents, control
from mesh.api.notes import read_ended, read_failed, read_note, read_run
from mesh.api.pipelines import pipeline_message, read_pipeline
from mesh.api.question import decode
from mesh.api.session import split_request, split_response
from mesh.api.snapshot import decode_snapshot
from mesh.api.stream import STATE_TAG
from mesh.api.tensors import TensorError, decode_contents, decode_raw
from mesh.cli.manifest import BadManifest
from mesh.cli.manifest import read as read_manifest
from mesh.core.errors import InvalidRequest, LoadFailed, MeshError, TooLarge
from mesh.core.pipeline.check import check
from mesh.core.types import Dtype, ModelName, ModelVersion, TensorSpec, Version
from mesh.gateway.elements import read_json
from mesh.gateway.v2_json import read_request
from mesh.node.folder import BadFolder
from mesh.node.repository import Scanner, _config
from mesh.node.runtimes.onnx_graph import even
from mesh.node.steps import held
from mesh.node.validate import read_inputs
from mesh.node.workers.inside import msgpack
from mesh.node.workers.inside.port import INLINE_BYTES, Port, PortError
from mesh.node.workers.inside.values import BadValue, decode_state
from mesh.node.workers.worker import _fits
from mesh.registry import keys, records
from mesh.router.override import overridden
from mesh.wire.connection import Connection
from mesh.wire.fields import Block
from mesh.wire.flow import Bounds
from mesh.wire.frames import PREFACE, ConnectionFault, settings
from mesh.wire.grpc_framing import Deframer
from mesh.wire.header_cache import HeaderReader
from mesh.wire.heads import ANSWER, OK_TRAILERS, answer_head, request_block, request_head
from mesh.wire.peek import PeekError, peek, peek_front
from mesh.wire.step_front import StepFronts
from mesh.wire.streams import Stream
from tests.fuzz.wire_targets import WIRE_TARGETS

DTYPES = list(Dtype)
SPECS = (TensorSpec("x", Dtype.FP32, (-1, 2)), TensorSpec("t", Dtype.BYTES, (-1,), optional=True))
MODEL = ModelVersion(ModelName("m"), Version("1"), "onnx", "file:///m/1", "d", 1, inputs=SPECS, max_batch_size=4)


def fuzz_peek(data: bytes) -> None:
    """The router's scan of a request; where it reads a name, protobuf reads the same."""
    with suppress(PeekError):
        read = peek(data)
        with suppress(InvalidRequest):
            assert decode(data).model_name == read.model_name


def fuzz_request(data: bytes) -> None:
    """The node's decoding and validation of a request."""
    with suppress(InvalidRequest):
        read_inputs(decode(data), SPECS, "m", 4)


def fuzz_tensor(data: bytes) -> None:
    """Raw and typed tensor contents; the first bytes choose type and shape."""
    if len(data) < 3:
        return
    dtype = DTYPES[data[0] % len(DTYPES)]
    shape = [data[1] % 5, data[2] % 5]
    with suppress(TensorError):
        decode_raw(data[3:], dtype, shape)
    try:
        contents = InferTensorContents.FromString(data[3:])
    except DecodeError:
        return
    with suppress(TensorError):
        decode_contents(contents, dtype, shape)


def fuzz_records(data: bytes) -> None:
    """Registry records and keys."""
    for read in (
        records.decode_node,
        records.decode_copy,
        records.decode_model,
        records.decode_placement,
        records.decode_pipeline,
        records.decode_forecast,
    ):
        with suppress(records.BadRecord):
            read(data)
    key = data.decode("latin-1")
    for split in (keys.split_node_key, keys.split_model_key, keys.split_copy_key, keys.split_pipeline_key):
        with suppress(ValueError):
            split(key)
        with suppress(ValueError):
            split(keys.MODELS + key)


def fuzz_model_yaml(data: bytes) -> None:
    """A model's configuration."""
    with suppress(BadFolder):
        _config(data)


def fuzz_folder(data: bytes) -> None:
    """A repository: names of a model, a version and a file, and the texts in them, beside a model that is right."""
    model, version, file, config, labels = (data.split(b"\xff\xfe") + [b""] * 5)[:5]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "good" / "1").mkdir(parents=True)
        (root / "good" / "1" / "model.onnx").touch()
        with suppress(OSError, ValueError):
            folder = root / os.fsdecode(model.replace(b"/", b"")) / os.fsdecode(version.replace(b"/", b"") or b"1")
            folder.mkdir(parents=True)
            (folder.parent / "model.yaml").write_bytes(config)
            (folder.parent / "labels.txt").write_bytes(labels)
            (folder / "model.py").touch()
            (folder / os.fsdecode(file.replace(b"/", b""))).touch()
        scanner = Scanner([root])
        scan = scanner.scan()
        assert "good" in [name for name, _ in scan.models]
        for found in scan.models.values():
            records.encode(found)
        for path, why in scan.refused.items():
            (scanner.label(path) + why).encode()


def fuzz_onnx(data: bytes) -> None:
    """The nodes of an ONNX file."""
    even(data)


def fuzz_override(data: bytes) -> None:
    """The JSON of a load request."""
    with suppress(LoadFailed):
        overridden(MODEL, data.decode("utf-8", "replace"))


class _Answers:
    """A receiver that answers what it hears, so that both halves of a connection are at work."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def headers(self, stream: Stream, block: Block, end: bool) -> None:
        request_head(block)
        answer_head(block)
        self.data(stream, b"", end)

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        self.connection.consumed(stream, len(data))
        if end:
            self.connection.answer(stream, ANSWER, bytes(len(data)), OK_TRAILERS)

    def reset(self, stream: Stream, code: int) -> None:
        """Nothing to stop."""

    def silent(self, stream: Stream, *, long: bool) -> None:
        """Wait."""

    def drained(self, stream: Stream) -> None:
        """Nothing waits."""


def _accepted(connection: Connection, stream: Stream, block: Block, end: bool) -> _Answers:
    receiver = _Answers(connection)
    receiver.headers(stream, block, end)
    return receiver


def _converse(side: Connection, data: bytes) -> None:
    """Give `data` to a connection in pieces, whose sizes its first bytes choose; check what must hold in the end."""
    sizes, rest = data[:2], data[2:]
    position = 0
    while position < len(rest):
        size = 1 + sizes[position % len(sizes)]
        side.receive(rest[position : position + size], position / 1000)
        position += size
        side.out.clear()
        side.make_room(1 << 18)
    assert len(side.streams) <= side.bounds.max_streams
    assert side.waiting_bytes <= len(data) + (1 << 16)
    if side.broken is None:
        for stream in side.streams.values():
            assert 0 <= stream.recv_window + stream.unacked <= stream.window


def fuzz_server_connection(data: bytes) -> None:
    """What a client may say, after its greeting or from the first byte."""
    side = Connection(Bounds(), accept=_accepted)
    if data[:1] > b"\x40":
        side.receive(PREFACE + settings({}), 0.0)
    _converse(side, data[1:])


def fuzz_client_connection(data: bytes) -> None:
    """What a server may say to a client with two calls on their way."""
    side = Connection(Bounds())
    side.greet()
    for body in (b"", bytes(70_000)):
        side.call(request_block("/a/B", "x", "http"), _Answers(side), body)
    if data[:1] > b"\x40":
        side.receive(settings({}), 0.0)
    _converse(side, data[1:])


def fuzz_headers(data: bytes) -> None:
    """HPACK, with a table and without."""
    for first in (b"", b"\x20"):
        reader = HeaderReader(4096)
        with suppress(ConnectionFault):
            if first:
                reader.read(first)
            for block in data.split(b"\xfe\xfe"):
                read = reader.read(block)
                request_head(read)
                answer_head(read)


def fuzz_messages(data: bytes) -> None:
    """A body of gRPC messages, cut where its first byte says."""
    deframer = Deframer(1000, compression=31 if data[:1] > b"\x80" else 0)
    cut = data[0] if data else 0
    with suppress(MeshError):
        for part in (data[1:cut], data[max(1, cut) :]):
            assert all(len(message) <= 1000 for message in deframer.feed(part))


def fuzz_front(data: bytes) -> None:
    """The router's faster scan of a request: what it reads of a whole one, `peek` reads too."""
    with suppress(PeekError):
        read = peek_front(data, 0, whole=True)
        assert read == peek(data)
    with suppress(PeekError):
        peek_front(data, 0, whole=False)


def fuzz_carried(data: bytes) -> None:
    """The router's reading of a request to a pipeline; what it takes, the node can decode."""
    with suppress(InvalidRequest):
        for tensor in read_tensors(decode(data)).values():
            decode_raw(tensor.raw, tensor.dtype, tensor.shape)


def fuzz_note(data: bytes) -> None:
    """What routers and nodes tell each other."""
    with suppress(InvalidRequest):
        note = read_note(data)
        read_failed(note.failed)
        run = read_run(note.ended.run)
        run.parameters()
        for name, tensor in (read_ended(note.ended) or {}).items():
            held({name: tensor})


def fuzz_pipeline(data: bytes) -> None:
    """A pipeline as a message, and as a file."""
    with suppress(DecodeError):
        pipeline, problems = read_pipeline(control.Pipeline.FromString(data))
        check(pipeline, lambda _, __: None)
        assert problems or read_pipeline(pipeline_message(pipeline))[0] == pipeline
    with suppress(BadManifest):
        for manifest in read_manifest("f", data.decode("utf-8", "replace")):
            read_pipeline(manifest.pipeline)


def fuzz_state(data: bytes) -> None:
    """The state of a sequence that a client hands in, and the request that it comes in."""
    with suppress(InvalidRequest):
        decode_snapshot(data)
    with suppress(InvalidRequest):
        rest, state = split_request(data)
        with suppress(InvalidRequest):
            request = decode(data)
            assert request.session_state == state
            assert not decode(rest).session_state
    if any(byte < 0x80 for byte in data[:9]):
        split_response(STATE_TAG + data)


def fuzz_step(data: bytes) -> None:
    """What a router remembers of the beginnings of steps says what a whole look says."""
    half = len(data) // 2
    fronts = StepFronts()
    for message in (data[:half], data[half:]):
        with suppress(PeekError):
            fronts.learn(message, 0, peek(message))
    for message in (data[:half], data[half:]):
        found = fronts.find(message, 0)
        with suppress(PeekError):
            assert found is None or found == peek(message)


def fuzz_port(data: bytes) -> None:
    """What a worker's process writes: a packet, and a header in memory that it shares."""
    receiver = Port()
    with suppress(PortError):
        receiver.decode(data)
    size, length = len(data) + INLINE_BYTES, data[0] if data else 0
    region = os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(region, size)
    os.pwrite(region, data, 0)
    fcntl.fcntl(region, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    with suppress(PortError):
        receiver.decode(struct.pack("<BIIQQ", 1, 1, length, length, size), region)
    receiver.close()


def fuzz_values(data: bytes) -> None:
    """The state of a sequence as a worker writes it; what our own MessagePack reads, it reads again."""
    with suppress(BadValue):
        decode_state(data)
    with suppress(ValueError, TypeError):
        value = msgpack.unpack(data, lambda code, inner: (code, inner))
        again = msgpack.unpack(msgpack.pack(value, _no_hook), lambda code, inner: (code, inner))
        assert repr(again) == repr(_listed(value))


def _no_hook(value: object) -> tuple[int, bytes]:
    raise TypeError(type(value).__name__)


def _listed(value: object) -> object:
    """Return a value with lists for tuples, as MessagePack has no other."""
    if isinstance(value, list | tuple):
        return [_listed(each) for each in value]
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    return value


def fuzz_worker(data: bytes) -> None:
    """What a worker says, once it can be read: what the node takes for a message has all that the node looks at."""
    with suppress(BadValue):
        message = decode_state(data)
        if isinstance(message, list) and message and _fits(message):
            kind, number = message[:2]
            assert type(number) is int
            if kind in {"done", "response"}:
                assert all(isinstance(name, str) and each.dtype is not None for name, each in message[-1].items())
            elif kind in {"failed", "refused", "closed"}:
                str(message[2]).encode()


def fuzz_http(data: bytes) -> None:
    """The body of a v2 request over HTTP; what is read is a message that gRPC could carry."""
    with suppress(InvalidRequest, TooLarge):
        split = int.from_bytes(data[:2]) if data[:1] < b"\x80" else None
        read_request(data[2:], split, "m", "").message.SerializeToString()
    for dtype in (Dtype.FP32, Dtype.INT8, Dtype.UINT64, Dtype.BOOL, Dtype.BYTES):
        with suppress(InvalidRequest):
            read_json(data, "x", dtype)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "server_connection": fuzz_server_connection,
    "client_connection": fuzz_client_connection,
    "headers": fuzz_headers,
    "messages": fuzz_messages,
    "front": fuzz_front,
    "peek": fuzz_peek,
    "request": fuzz_request,
    "tensor": fuzz_tensor,
    "records": fuzz_records,
    "model_yaml": fuzz_model_yaml,
    "folder": fuzz_folder,
    "onnx": fuzz_onnx,
    "override": fuzz_override,
    "carried": fuzz_carried,
    "note": fuzz_note,
    "pipeline": fuzz_pipeline,
    "state": fuzz_state,
    "step": fuzz_step,
    "port": fuzz_port,
    "worker": fuzz_worker,
    "values": fuzz_values,
    "http": fuzz_http,
    **WIRE_TARGETS,
}
