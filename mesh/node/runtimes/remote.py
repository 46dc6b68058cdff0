"""A model on another KServe v2 gRPC server (Triton, OpenVINO Model Server, MLServer), used as it is.

The version's folder may be empty; model.yaml says where the model is::

    runtime: remote
    parameters: {address: "10.0.0.7:9000", model: wine, timeout_s: "5"}

The copy here holds no memory for it: what the server does with its own is its affair. Inputs and outputs are those of
its ModelMetadata unless model.yaml declares them (MLServer tells none for many models).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc

from mesh.api.carried import Carried, read_tensors, request_message
from mesh.api.messages import (
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
)
from mesh.api.tensors import TensorError, decode_raw, encode_raw
from mesh.core.errors import LoadFailed, ModelFailed, RemoteError
from mesh.core.types import Dtype, ModelVersion, TensorSpec
from mesh.node.runtimes.base import Array, Loaded, LoadSpec, Request, Tensors

SERVICE: Final = "/inference.GRPCInferenceService/"
LOAD_S: Final = 20.0
"""How long the server may take to say that it is ready for the model, and what it takes and gives."""
CALL_S: Final = 60.0
"""How long one call may take, unless model.yaml says otherwise (parameter ``timeout_s``)."""
PARALLEL: Final = 16
"""Calls at a time, unless model.yaml says otherwise (parameter ``parallel``)."""
_KNOWN: Final = frozenset({"address", "model", "version", "timeout_s", "parallel", "tls_ca"})
_OPTIONS: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class RemoteRuntime:
    """A `Runtime`."""

    in_process = False

    def load(self, spec: LoadSpec) -> Loaded:
        """Connect, and ask whether the model is ready and what it takes. Raises `LoadFailed`."""
        model = spec.model
        said = model.parameters
        address = said.get("address", "")
        if unknown := sorted(said.keys() - _KNOWN):
            raise _failed(model, f"parameters of a remote model are {', '.join(sorted(_KNOWN))}; got {unknown}")
        if ":" not in address:
            raise _failed(model, f"expected parameters.address as host:port, got '{address}'")
        try:
            timeout_s, parallel = float(said.get("timeout_s", CALL_S)), int(said.get("parallel", PARALLEL))
        except ValueError as error:
            raise _failed(model, f"expected numbers as timeout_s and parallel: {error}") from error
        if model.sequence is not None:
            raise _failed(model, "sequence is for onnx and python models; a remote server schedules its own")
        if timeout_s <= 0 or parallel < 1:
            raise _failed(model, "timeout_s and parallel must be above 0")
        channel = _channel(address, said.get("tls_ca", ""))
        remote = _Remote(model, channel, address, timeout_s=timeout_s, parallel=parallel)
        try:
            remote.look()
        except BaseException:
            channel.close()
            raise
        return remote


def _failed(model: ModelVersion, why: str) -> LoadFailed:
    return LoadFailed(f"failed to load '{model.name}', {why}")


def _channel(address: str, tls_ca: str) -> Any:
    if not tls_ca:
        return grpc.insecure_channel(address, options=_OPTIONS)
    roots = None if tls_ca == "system" else Path(tls_ca).read_bytes()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates=roots), options=_OPTIONS)


class _Remote:
    """A `Loaded`."""

    apart = None
    executor = None
    steady = False
    steps = None

    def __init__(self, model: ModelVersion, channel: Any, address: str, *, timeout_s: float, parallel: int) -> None:
        self._name = model.parameters.get("model", model.name)
        self._version = model.parameters.get("version", "")
        self._called = f"model '{model.name}' ('{self._name}' at {address})"
        self._channel = channel
        self._timeout_s = timeout_s
        self._infer = channel.unary_unary(
            SERVICE + "ModelInfer", lambda request: request.SerializeToString(), ModelInferResponse.FromString
        )
        self.inputs: tuple[TensorSpec, ...] = model.inputs
        self.outputs: tuple[TensorSpec, ...] = model.outputs
        self.parallel = parallel
        self.batches = model.max_batch_size > 0

    def look(self) -> None:
        """Ask the server whether it is ready for the model, and what it takes. Raises `LoadFailed`."""
        try:
            ready = self._ask(
                "ModelReady", ModelReadyRequest(name=self._name, version=self._version), ModelReadyResponse
            )
            if not ready.ready:
                raise LoadFailed(f"failed to load {self._called}: the server is not ready for it")
            if not self.inputs or not self.outputs:
                named = ModelMetadataRequest(name=self._name, version=self._version)
                self._sign(self._ask("ModelMetadata", named, ModelMetadataResponse))
        except grpc.RpcError as error:
            raise LoadFailed(f"failed to load {self._called}: {error.code().name} {error.details()}") from error

    def _ask(self, method: str, request: Any, response: Any) -> Any:
        call = self._channel.unary_unary(SERVICE + method, type(request).SerializeToString, response.FromString)
        return call(request, timeout=LOAD_S)

    def _sign(self, metadata: ModelMetadataResponse) -> None:
        try:
            found = [
                tuple(TensorSpec(each.name, Dtype(each.datatype), tuple(each.shape)) for each in tensors)
                for tensors in (metadata.inputs, metadata.outputs)
            ]
        except ValueError as error:
            told = f"{error}; declare inputs and outputs in model.yaml"
            raise LoadFailed(f"failed to load {self._called}: {told}") from error
        self.inputs, self.outputs = self.inputs or found[0], self.outputs or found[1]
        if not self.inputs or not self.outputs:
            told = "its server does not tell what it takes: declare inputs and outputs in model.yaml"
            raise LoadFailed(f"failed to load {self._called}: {told}")

    def admit(self, inputs: Tensors) -> Tensors:
        return inputs

    def run(self, inputs: Tensors, request: Request) -> Tensors:
        specs = {spec.name: spec.dtype for spec in self.inputs}
        tensors = {name: _carried(array, specs[name]) for name, array in inputs.items()}
        message = request_message(self._name, self._version, tensors, request.parameters)
        try:
            answer = self._infer(message, timeout=self._timeout_s)
        except grpc.RpcError as error:
            code: int = error.code().value[0]
            raise RemoteError(code, f"{self._called}: {error.details()}") from error
        return {name: _array(tensor) for name, tensor in read_tensors(answer).items()}

    def stream(self, inputs: Tensors, request: Request) -> Iterator[Tensors]:
        raise ModelFailed(f"{self._called}: remote models with several responses are not offered")

    def close(self) -> None:
        self._channel.close()


def _carried(array: Array, dtype: Dtype) -> Carried:
    try:
        return Carried(dtype, array.shape, encode_raw(array, dtype))
    except TensorError as error:
        raise ModelFailed(error.message) from error


def _array(tensor: Carried) -> Array:
    return decode_raw(tensor.raw, tensor.dtype, tensor.shape)
