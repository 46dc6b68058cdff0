"""A KServe v2 server on plain grpcio for the client's tests: it echoes, keeps what it got, and fails on request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from mesh.api import messages as m
from mesh.api import service
from mesh.api.gen.inference import grpc_service_pb2
from tests.fixtures.certs import Certs, make_certs
from tests.fixtures.tools import need

SERVICE = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]


class Echo:
    """Answers every input as an output of the same name. The model's name says what else happens."""

    def __init__(self) -> None:
        self.address = ""
        self.metadata: list[dict[str, str | bytes]] = []
        self.waiting = threading.Event()
        """Set while a call to `slow` or `silent` is here."""
        self.ended = threading.Event()
        """Set when such a call was cancelled."""

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - the proto's name
        self.metadata.append(dict(context.invocation_metadata()))
        if request.model_name == "slow":
            self._wait(context)
        return echoed(request)

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802 - the proto's name
        self.metadata.append(dict(context.invocation_metadata()))
        for request in requests:
            if request.model_name == "silent":
                self._wait(context)
                return
            if request.model_name == "die":
                context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
            if request.model_name == "finish":
                return
            if request.model_name == "fail":
                answer = m.ModelInferResponse(id=request.id)
                yield m.ModelStreamInferResponse(error_message="no (NOT_FOUND)", infer_response=answer)
            else:
                yield m.ModelStreamInferResponse(infer_response=echoed(request))

    def _wait(self, context: Any) -> None:
        over = threading.Event()
        if context.add_callback(over.set):
            self.waiting.set()
            over.wait()
        self.ended.set()


def echoed(request: Any) -> Any:
    response = m.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    for given, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        response.outputs.add(name=given.name, datatype=given.datatype, shape=given.shape)
        response.raw_output_contents.append(raw)
    return response


@contextmanager
def serving(credentials: grpc.ServerCredentials | None = None) -> Iterator[Echo]:
    """Run an `Echo` on a free port, with TLS if there are credentials."""
    echo = Echo()
    threads = futures.ThreadPoolExecutor(16)
    server = grpc.server(threads, handlers=[service.generic_handler(SERVICE, echo)])
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    echo.address = f"127.0.0.1:{port}"
    server.start()
    try:
        yield echo
    finally:
        server.stop(None).wait()
        threads.shutdown()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    need("openssl")
    return make_certs(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="session")
def other_certs(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    need("openssl")
    return make_certs(tmp_path_factory.mktemp("other_certs"))


def server_credentials(certs: Certs, *, ask: bool) -> grpc.ServerCredentials:
    def read(path: Path) -> bytes:
        return path.read_bytes()

    pair = (read(certs.server_key), read(certs.server_cert))
    return grpc.ssl_server_credentials([pair], read(certs.ca) if ask else None, require_client_auth=ask)
