"""The messages of the KServe v2 protocol and of the mesh, from the pool of our own.

Import them from here: ``from mesh.api.messages import ModelInferRequest``. The etcd messages are the registry's own
affair (`mesh.api.gen.etcd.rpc_pb2`).
"""

from __future__ import annotations

from mesh.api.gen.inference import grpc_service_pb2 as _inference
from mesh.api.gen.inference.grpc_service_pb2 import (
    InferParameter,
    InferTensorContents,
    ModelConfigRequest,
    ModelConfigResponse,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ModelStatisticsRequest,
    ModelStatisticsResponse,
    ModelStreamInferResponse,
    RepositoryIndexRequest,
    RepositoryIndexResponse,
    RepositoryModelLoadRequest,
    RepositoryModelLoadResponse,
    RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from mesh.api.gen.inference.model_config_pb2 import ModelConfig
from mesh.api.gen.mesh.v1 import control_pb2 as control
from mesh.api.gen.mesh.v1 import node_pb2 as node_control
from mesh.api.gen.mesh.v1 import parts_pb2 as notes

INFERENCE_SERVICE = _inference.DESCRIPTOR.services_by_name["GRPCInferenceService"]
MESH_CONTROL_SERVICE = control.DESCRIPTOR.services_by_name["MeshControl"]
NODE_CONTROL_SERVICE = node_control.DESCRIPTOR.services_by_name["NodeControl"]

__all__ = [
    "INFERENCE_SERVICE",
    "MESH_CONTROL_SERVICE",
    "NODE_CONTROL_SERVICE",
    "InferParameter",
    "InferTensorContents",
    "ModelConfig",
    "ModelConfigRequest",
    "ModelConfigResponse",
    "ModelInferRequest",
    "ModelInferResponse",
    "ModelMetadataRequest",
    "ModelMetadataResponse",
    "ModelReadyRequest",
    "ModelReadyResponse",
    "ModelStatisticsRequest",
    "ModelStatisticsResponse",
    "ModelStreamInferResponse",
    "RepositoryIndexRequest",
    "RepositoryIndexResponse",
    "RepositoryModelLoadRequest",
    "RepositoryModelLoadResponse",
    "RepositoryModelUnloadRequest",
    "RepositoryModelUnloadResponse",
    "ServerLiveRequest",
    "ServerLiveResponse",
    "ServerMetadataRequest",
    "ServerMetadataResponse",
    "ServerReadyRequest",
    "ServerReadyResponse",
    "control",
    "node_control",
    "notes",
]
