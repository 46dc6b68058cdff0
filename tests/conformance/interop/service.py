"""gRPC's interoperability service (grpc.testing.TestService) as handlers of bytes, for an engine of ours to carry.

What it must do is in gRPC's "Interoperability Test Case Descriptions". The messages are described here by hand, the
fields that the cases use and no others: their numbers are the interface, and a parser skips the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from mesh.core.errors import Code, MeshError, RemoteError
from mesh.wire.transport import Call, HotMethods

INITIAL: Final = "x-grpc-test-echo-initial"
TRAILING: Final = "x-grpc-test-echo-trailing-bin"

_NUMBER, _FLAG, _TEXT, _BYTES = (
    FieldDescriptorProto.TYPE_INT32,
    FieldDescriptorProto.TYPE_BOOL,
    FieldDescriptorProto.TYPE_STRING,
    FieldDescriptorProto.TYPE_BYTES,
)
_MESSAGES: Final[dict[str, dict[str, tuple[int, Any]]]] = {
    # The type of a payload is an enum with one value.
    "Payload": {"type": (1, _NUMBER), "body": (2, _BYTES)},
    "EchoStatus": {"code": (1, _NUMBER), "message": (2, _TEXT)},
    "SimpleRequest": {
        "response_size": (2, _NUMBER),
        "payload": (3, "Payload"),
        "response_status": (7, "EchoStatus"),
        "fill_server_id": (9, _FLAG),
    },
    "SimpleResponse": {"payload": (1, "Payload"), "server_id": (4, _TEXT)},
    "StreamingInputCallRequest": {"payload": (1, "Payload")},
    "StreamingInputCallResponse": {"aggregated_payload_size": (1, _NUMBER)},
    "ResponseParameters": {"size": (1, _NUMBER), "interval_us": (2, _NUMBER)},
    "StreamingOutputCallRequest": {
        "response_parameters": (2, "repeated ResponseParameters"),
        "payload": (3, "Payload"),
        "response_status": (7, "EchoStatus"),
    },
    "StreamingOutputCallResponse": {"payload": (1, "Payload")},
}


def _classes() -> dict[str, Any]:
    """Return a class for each of the messages."""
    file = FileDescriptorProto(name="interop.proto", package="grpc.testing", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added = message.field.add(name=field, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
            if isinstance(kind, int):
                added.type = kind  # type: ignore[assignment] # the stubs want the enum's own type
                continue
            repeated, _, of = kind.rpartition(" ")
            if repeated:
                added.label = FieldDescriptorProto.LABEL_REPEATED
            added.type, added.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".grpc.testing.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.testing.{name}")) for name in _MESSAGES
    }


M: Final = _classes()


def _echo_metadata(call: Call) -> None:
    """Send back the two pairs that a caller asks for: one ahead of the answer, one behind it."""
    for key, value in call.metadata:
        if key == INITIAL:
            call.headers = ((key, value),)
        elif key == TRAILING:
            call.trailers.append((key, value))


def _raise_asked(request: Any) -> None:
    asked = request.response_status
    if asked.code:
        raise RemoteError(Code(asked.code), asked.message)


def _payload(size: int) -> Any:
    if size < 0:
        raise _Negative(f"expected the size of a response, got {size}")
    return M["Payload"](body=bytes(size))


class _Negative(MeshError):
    code = Code.INVALID_ARGUMENT


async def empty(call: Call, message: bytes) -> bytes:
    """Answer nothing with nothing."""
    _echo_metadata(call)
    return b""


async def unary(call: Call, message: bytes) -> bytes:
    """Answer with a payload of the size that is asked for, or with the status."""
    request = M["SimpleRequest"].FromString(message)
    _echo_metadata(call)
    _raise_asked(request)
    name = "the one" if request.fill_server_id else ""
    return bytes(M["SimpleResponse"](payload=_payload(request.response_size), server_id=name).SerializeToString())


async def streaming_input(call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Answer with the size of all payloads."""
    size = 0
    async for message in messages:
        size += len(M["StreamingInputCallRequest"].FromString(message).payload.body)
    yield M["StreamingInputCallResponse"](aggregated_payload_size=size).SerializeToString()


async def full_duplex(call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Answer each request with the payloads that it asks for, or end with its status."""
    _echo_metadata(call)
    async for message in messages:
        request = M["StreamingOutputCallRequest"].FromString(message)
        _raise_asked(request)
        for wanted in request.response_parameters:
            await asyncio.sleep(wanted.interval_us / 1e6)
            yield M["StreamingOutputCallResponse"](payload=_payload(wanted.size)).SerializeToString()


def _path(method: str) -> str:
    return f"/grpc.testing.TestService/{method}"


SERVICE: Final = HotMethods(
    unary={_path("EmptyCall"): empty, _path("UnaryCall"): unary},
    stream={
        # A call of one request is a stream of one.
        _path("StreamingOutputCall"): full_duplex,
        _path("StreamingInputCall"): streaming_input,
        _path("FullDuplexCall"): full_duplex,
    },
)
