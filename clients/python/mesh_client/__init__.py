"""The Python client of the mesh: numpy arrays in, numpy arrays out, sync and async, single calls and streams.

from mesh_client import Client

with Client("127.0.0.1:8001") as client:
    result = client.infer("iris", {"x": rows})
    print(result["label"])
"""

from __future__ import annotations

from mesh.core.errors import Code
from mesh.core.types import Dtype

from ._async.client import AsyncClient
from ._async.session import AsyncSession
from ._async.stream import AsyncStream
from ._errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    MeshClientError,
    ModelNotFound,
    NotAllowed,
    NotOffered,
    ServerFailed,
    SessionEnded,
    StreamError,
    TooLarge,
    Unavailable,
)
from ._pipeline import Output, Pipeline, StepOutputs
from ._sync.client import Client
from ._sync.session import Session
from ._sync.stream import Stream
from ._values import InferResult, Inputs, Tensor, Tls

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "AsyncStream",
    "Cancelled",
    "Client",
    "Code",
    "DeadlineExceeded",
    "Dtype",
    "InferResult",
    "Inputs",
    "InvalidInput",
    "MeshClientError",
    "ModelNotFound",
    "NotAllowed",
    "NotOffered",
    "Output",
    "Pipeline",
    "ServerFailed",
    "Session",
    "SessionEnded",
    "StepOutputs",
    "Stream",
    "StreamError",
    "Tensor",
    "Tls",
    "TooLarge",
    "Unavailable",
]
