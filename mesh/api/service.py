"""gRPC services and stubs from the descriptors of our own pool, without generated ``*_pb2_grpc`` modules.

A servicer is any object with methods named as in the .proto. A method that is missing answers UNIMPLEMENTED.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from google.protobuf import descriptor, message, message_factory

Request = TypeVar("Request", bound=message.Message)
Response = TypeVar("Response", bound=message.Message)


def generic_handler(service: descriptor.ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler[Any, Any]:
    """Return the handler that serves `service` with the methods of `servicer`, sync or async alike."""
    handlers: dict[str, Any] = {}
    for method in service.methods:
        behaviour = getattr(servicer, method.name, None)
        if behaviour is not None:
            handlers[method.name] = _handler(method, behaviour)
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _handler(method: descriptor.MethodDescriptor, behaviour: Callable[..., Any]) -> Any:
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[(method.client_streaming, method.server_streaming)]
    request = message_factory.GetMessageClass(method.input_type)
    response = message_factory.GetMessageClass(method.output_type)
    return make(behaviour, request_deserializer=request.FromString, response_serializer=response.SerializeToString)


def unary(channel: Any, path: str, request: type[Request], response: type[Response]) -> Callable[..., Any]:
    """Return the callable for unary `path` ("/package.Service/Method") on a grpc or grpc.aio `channel`."""
    return channel.unary_unary(  # type: ignore[no-any-return]
        path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )


def stream(channel: Any, path: str, request: type[Request], response: type[Response]) -> Callable[..., Any]:
    """Return the callable for two-way streaming `path` on a grpc or grpc.aio `channel`."""
    return channel.stream_stream(  # type: ignore[no-any-return]
        path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )
