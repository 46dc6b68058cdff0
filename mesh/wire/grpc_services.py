"""The plain grpcio services that every process of the mesh offers: health and reflection.

Health (grpc.health.v1): Check, Watch and List, from one function that says what is served. Reflection in v1 and
v1alpha, because grpcurl and buf try v1 first and grpcio's package serves v1alpha alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf import descriptor_pool, duration_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2

from mesh.api.gen.grpc.health.v1 import health_pb2
from mesh.api.gen.inference import grpc_service_pb2, model_config_pb2
from mesh.api.gen.mesh.v1 import control_pb2, details_pb2, node_pb2
from mesh.api.service import generic_handler
from mesh.core.texts import status_text

HEALTH = "grpc.health.v1.Health"
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

MAX_WATCHES = 1000
"""Open health watches. One per client connection is usual; each costs a task."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthSource(Protocol):
    """Says what is healthy, and when that may have changed."""

    def serving(self) -> Mapping[str, bool]:
        """Return every known service with whether it serves; "" is the whole process."""

    async def changed(self) -> None:
        """Return when `serving` may answer differently."""


class _Health:
    """The servicer. Unknown services: Check says NOT_FOUND, Watch says SERVICE_UNKNOWN (grpc.health.v1's rules)."""

    def __init__(self, source: HealthSource) -> None:
        self._source = source
        self._watches = 0

    async def Check(self, request: Any, context: Any) -> Any:
        known = self._source.serving().get(request.service)
        if known is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, status_text(f"unknown service {request.service!r}"))
        return health_pb2.HealthCheckResponse(status=_status(known))

    async def List(self, request: Any, context: Any) -> Any:
        return health_pb2.HealthListResponse(
            statuses={
                name: health_pb2.HealthCheckResponse(status=_status(known))
                for name, known in self._source.serving().items()
            }
        )

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if self._watches >= MAX_WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_WATCHES} health watches are open already")
        self._watches += 1
        try:
            said = None
            while True:
                changed = asyncio.ensure_future(self._source.changed())
                try:
                    status = _status(self._source.serving().get(request.service))
                    if status != said:
                        said = status
                        yield health_pb2.HealthCheckResponse(status=status)
                    await changed
                finally:
                    changed.cancel()
        finally:
            self._watches -= 1


def _status(known: bool | None) -> health_pb2.HealthCheckResponse.ServingStatus:
    if known is None:
        return _SERVICE_UNKNOWN
    return _SERVING if known else _NOT_SERVING


def health_handlers(source: HealthSource) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """Return the handlers of grpc.health.v1.Health, answered from `source`."""
    return [generic_handler(health_pb2.DESCRIPTOR.services_by_name["Health"], _Health(source))]


def reflection_handlers(services: Sequence[str]) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """Return the handlers of server reflection (v1 and v1alpha) that list `services`, health and reflection."""
    make = reflection.aio.ReflectionServicer  # type: ignore[attr-defined] # public, but exported without __all__
    servicer = make((*services, HEALTH, *REFLECTION), pool=_reflection_pool())
    methods = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
    }
    return [grpc.method_handlers_generic_handler(name, methods) for name in REFLECTION]


def _reflection_pool() -> descriptor_pool.DescriptorPool:
    """Return a pool with all that can be described: ours, health's and both versions of reflection.

    A copy, because the reflection messages come from a package that registers in protobuf's default pool.
    """
    pool = descriptor_pool.DescriptorPool()
    ours = (model_config_pb2, grpc_service_pb2, control_pb2, node_pb2)
    for module in (*ours, health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    v1 = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    v1.name = "grpc/reflection/v1/reflection.proto"
    v1.package = "grpc.reflection.v1"
    for message in v1.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(".grpc.reflection.v1alpha.", ".grpc.reflection.v1.")
    for service in v1.service:
        for method in service.method:
            method.input_type = method.input_type.replace("v1alpha", "v1")
            method.output_type = method.output_type.replace("v1alpha", "v1")
    pool.AddSerializedFile(v1.SerializeToString())
    pool.AddSerializedFile(duration_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(_error_details().SerializeToString())
    return pool


def _error_details() -> FileDescriptorProto:
    """Return what the details of a refusal are on the wire, by the names that tools look for (google/rpc)."""
    ours = FileDescriptorProto.FromString(details_pb2.DESCRIPTOR.serialized_pb)
    file = FileDescriptorProto(
        name="google/rpc/error_details.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=[duration_pb2.DESCRIPTOR.name],
        message_type=[each for each in ours.message_type if each.name in {"ErrorInfo", "RetryInfo"}],
    )
    names = {
        ".mesh.v1.Span": ".google.protobuf.Duration",
        ".mesh.v1.ErrorInfo.MetadataEntry": ".google.rpc.ErrorInfo.MetadataEntry",
    }
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = names.get(field.type_name, field.type_name)
    return file
