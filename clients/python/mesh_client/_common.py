"""What both clients do alike around a call: options, metadata, methods."""

from __future__ import annotations

import importlib
import random
import re
import sys
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message

from mesh.api import messages as m
from mesh.api.gen.grpc.health.v1 import health_pb2 as health

from ._errors import InvalidInput
from ._values import Metadata, Tls

DEFAULT_ADDRESS = "127.0.0.1:8001"

MAX_MESSAGE_BYTES = 2**31 - 1
"""Triton's clients' cap, which is gRPC's own."""

STREAM_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"


class Method(NamedTuple):
    """A unary method and its messages."""

    path: str
    response: type[Message]


def _inference(name: str, response: type[Message]) -> Method:
    return Method(f"/inference.GRPCInferenceService/{name}", response)


INFER = _inference("ModelInfer", m.ModelInferResponse)
SERVER_LIVE = _inference("ServerLive", m.ServerLiveResponse)
SERVER_READY = _inference("ServerReady", m.ServerReadyResponse)
SERVER_METADATA = _inference("ServerMetadata", m.ServerMetadataResponse)
MODEL_READY = _inference("ModelReady", m.ModelReadyResponse)
MODEL_METADATA = _inference("ModelMetadata", m.ModelMetadataResponse)
MODEL_CONFIG = _inference("ModelConfig", m.ModelConfigResponse)
MODEL_STATISTICS = _inference("ModelStatistics", m.ModelStatisticsResponse)
REPOSITORY_INDEX = _inference("RepositoryIndex", m.RepositoryIndexResponse)
LOAD = _inference("RepositoryModelLoad", m.RepositoryModelLoadResponse)
UNLOAD = _inference("RepositoryModelUnload", m.RepositoryModelUnloadResponse)
LIST_SESSIONS = Method("/mesh.v1.MeshControl/ListSessions", m.control.ListSessionsResponse)
LIST_NODES = Method("/mesh.v1.MeshControl/ListNodes", m.control.ListNodesResponse)
LIST_MODELS = Method("/mesh.v1.MeshControl/ListModels", m.control.ListModelsResponse)
RELEASE_MODEL = Method("/mesh.v1.MeshControl/ReleaseModel", m.control.ReleaseModelResponse)
EXPLAIN = Method("/mesh.v1.MeshControl/Explain", m.control.ExplainResponse)
APPLY_PIPELINE = Method("/mesh.v1.MeshControl/ApplyPipeline", m.control.ApplyPipelineResponse)
LIST_PIPELINES = Method("/mesh.v1.MeshControl/ListPipelines", m.control.ListPipelinesResponse)
DELETE_PIPELINE = Method("/mesh.v1.MeshControl/DeletePipeline", m.control.DeletePipelineResponse)
HEALTH_CHECK = Method("/grpc.health.v1.Health/Check", health.HealthCheckResponse)

HealthCheckRequest = health.HealthCheckRequest
SERVING = health.HealthCheckResponse.SERVING


def options(max_message_bytes: int) -> list[tuple[str, Any]]:
    """Return grpcio's channel options."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # Three seconds of silence while calls go on are checked with a ping: a router that vanished or stands still is
        # left for the next after 6 s. Routers take such pings; who else is asked and minds them says so (GOAWAY
        # too_many_pings), and gRPC then pings half as often.
        ("grpc.keepalive_time_ms", 3_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.http2.ping_timeout_ms", 3_000),
        # Else the third ping waits for a minute while a long call sends nothing.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # How long one attempt to connect may take, despite its name.
        ("grpc.min_reconnect_backoff_ms", 3_000),
    ]


def credentials(tls: Tls) -> grpc.ChannelCredentials:
    """Return grpcio's credentials. Raises OSError for a file that cannot be read."""

    def read(path: str | None) -> bytes | None:
        return Path(path).read_bytes() if path else None

    return grpc.ssl_channel_credentials(read(tls.ca), read(tls.key), read(tls.cert))


WANTS_STATE = "mesh_tokens"
"""Request parameter: answer with the state too, so that the session can go on at another router."""
RESUMES = "mesh_resume"
"""Request parameter: begin from the request's `session_state`."""
RESUMABLE = "mesh_resumable"
"""Parameter of a failed answer: the mesh lost the state of the sequence, and takes it back from whoever kept it."""

_SCHEME = re.compile(r"(ipv4|ipv6|dns|unix|unix-abstract|vsock|xds):")

_FIRST_WAIT_S = 0.02
_MOST_WAIT_S = 1.0


def sequence_id() -> str:
    """Return an id that no other session has."""
    return uuid.uuid4().hex


def addresses_of(address: str) -> list[str]:
    """Return the routers that an address names, separated by commas. Raises ValueError for none.

    One with a scheme (such as "ipv4:a:8001,b:8001" or "dns:///routers:8001") is gRPC's own way to name several: it is
    left to gRPC as it is.
    """
    if _SCHEME.match(address):
        return [address]
    found = [each.strip() for each in address.split(",") if each.strip()]
    if not found:
        raise ValueError(f"expected host:port, or several separated by commas, got {address!r}")
    return found


class Patience:
    """For how long something is tried again, and when next: at first at once, then ever more seldom."""

    def __init__(self, for_s: float) -> None:
        self._for_s = for_s
        self.again()

    def again(self) -> None:
        """Begin anew: it worked."""
        self._until_s: float | None = None
        self._wait_s = _FIRST_WAIT_S

    def more(self) -> bool:
        """Tell whether to try once more."""
        now_s = time.monotonic()
        if self._until_s is None:
            self._until_s = now_s + self._for_s
        return now_s < self._until_s

    def wait_s(self) -> float:
        """Return how long to wait before that, at random up to twice what it was the time before."""
        self._wait_s = min(_MOST_WAIT_S, 2 * self._wait_s)
        return self._wait_s * (0.5 + random.random() / 2)  # noqa: S311 - so that clients do not come back all at once


UNORDERED = ("mesh-unordered", "true")
"""Metadata of a stream whose answers may come in any order."""


def metadata_of(
    always: Metadata, token: str | None, call: Metadata | None
) -> tuple[tuple[str, str | bytes], ...] | None:
    """Return the metadata of one call: the client's, the token's, the call's, and the trace that is current."""
    pairs = [*always, *(call or ())]
    if token:
        pairs.append(("authorization", f"Bearer {token}"))
    for key, value in pairs:
        _check(key, value)
    given = {key for key, _ in pairs}
    pairs.extend((key, value) for key, value in _trace() if key not in given)
    return tuple(pairs) or None


_KEY = re.compile(r"[0-9a-z_.-]+")
_TEXT = re.compile(r"[ -~]*")


def _check(key: str, value: str | bytes) -> None:
    """Raise `InvalidInput` for a pair that gRPC cannot carry (gRPC over HTTP/2, "Custom-Metadata").

    grpcio tells of such a pair in an error of its own inside, and grpc.aio waits for ever to write to its stream. A
    value is not repeated in the message: it may be a secret.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InvalidInput(f"expected a metadata key of lower-case letters, digits and '-', '_', '.', got {key!r}")
    if key.endswith("-bin"):
        if not isinstance(value, bytes):
            raise InvalidInput(
                f"expected bytes as the value of metadata '{key}', got {type(value).__name__}: names in -bin are binary"
            )
        return
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not _TEXT.fullmatch(text):
        raise InvalidInput(
            f"expected printable ASCII as the value of metadata '{key}': send other bytes under a name in -bin"
        )


def _trace() -> list[tuple[str, str]]:
    """Return W3C trace metadata when OpenTelemetry is in use in this process and a span is current.

    It is looked up, not imported: who traces has imported it, and who does not pays nothing.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not trace.get_current_span().get_span_context().is_valid:
        return []
    carrier: dict[str, str] = {}
    importlib.import_module("opentelemetry.propagate").inject(carrier)
    return list(carrier.items())
