"""ONNX Runtime: a session per version, on the CPU or through CUDA with a memory limit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from mesh.core.errors import InvalidRequest, LoadFailed
from mesh.core.types import DeviceKind, Dtype, ModelVersion, TensorSpec
from mesh.node.runtimes.bank import Place
from mesh.node.runtimes.base import Loaded, LoadSpec, Request, Steps, Tensors
from mesh.node.runtimes.on_device import DeviceSteps, fits
from mesh.node.runtimes.onnx_graph import is_even
from mesh.node.runtimes.stateful import TensorSteps
from mesh.node.runtimes.text import TextSteps, text_signature
from mesh.telemetry import logs

log = logs.get(__name__)

FILE = "model.onnx"

CUDA = "CUDAExecutionProvider"

_DTYPE = {
    "tensor(bool)": Dtype.BOOL,
    "tensor(uint8)": Dtype.UINT8,
    "tensor(uint16)": Dtype.UINT16,
    "tensor(uint32)": Dtype.UINT32,
    "tensor(uint64)": Dtype.UINT64,
    "tensor(int8)": Dtype.INT8,
    "tensor(int16)": Dtype.INT16,
    "tensor(int32)": Dtype.INT32,
    "tensor(int64)": Dtype.INT64,
    "tensor(float16)": Dtype.FP16,
    "tensor(float)": Dtype.FP32,
    "tensor(double)": Dtype.FP64,
    "tensor(string)": Dtype.BYTES,
}
"""ONNX Runtime's names. bfloat16 is absent: its Python interface cannot pass it."""


def has_cuda() -> bool:
    """Tell whether this ONNX Runtime can run on a GPU."""
    return CUDA in ort.get_available_providers()


_IDENTITY: Final = (
    b'\x08\x07\x12\x00:<\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x04warmZ\x10\n\x01x\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01n'
    b"b\x10\n\x01y\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01nB\x04\n\x00\x10\r"
)
"""The smallest ONNX model: y = Identity(x), one float tensor."""


class OnnxRuntime:
    """A `Runtime`.

    ONNX Runtime's first session in a process takes some 9 MB that no later one takes; it is opened here, so that they
    are not counted as the first model's.
    """

    in_process = True

    def __init__(self) -> None:
        ort.InferenceSession(_IDENTITY, _options(), providers=["CPUExecutionProvider"])

    def load(self, spec: LoadSpec) -> Loaded:
        """Open a session. Raises `LoadFailed` for a missing or corrupt file and for types we cannot carry."""
        name = spec.model.name
        path = spec.path / FILE
        if not path.is_file():
            raise LoadFailed(f"failed to load '{name}', expected the file {FILE} in version {spec.model.version}")
        try:
            session = ort.InferenceSession(str(path), _options(), providers=_providers(spec))
        except Exception as error:
            raise LoadFailed(f"failed to load '{name}', ONNX Runtime says: {_first_line(error)}") from error
        model, all_inputs = spec.model, session.get_inputs()
        on_cpu = spec.device.kind is DeviceKind.CPU
        # How long texts are is not seen from how many there are.
        steady = on_cpu and not any(each.type == "tensor(string)" for each in all_inputs) and is_even(path)
        if model.generation is not None:
            loaded = _Session(name, session, *text_signature(model.generation), on_cpu=on_cpu, steady=steady)
            loaded.generates(model, spec.path, _signature(model, "input", all_inputs, ()))
            return loaded
        given, gives = between(model)
        inputs = _signature(model, "input", [each for each in all_inputs if each.name not in given], model.inputs)
        shown = [each for each in session.get_outputs() if each.name not in gives]
        outputs = _signature(model, "output", shown, model.outputs)
        loaded = _Session(name, session, inputs, outputs, on_cpu=on_cpu, steady=steady)
        if model.sequence is not None:
            loaded.sequences(model, spec.path, _signature(model, "input", all_inputs, ()))
            if spec.device.kind is DeviceKind.GPU:
                loaded.keeps_states(model, Place("cuda", spec.device.index, _providers(spec)))
        return loaded


class _Session:
    """A `Loaded`."""

    apart = None
    executor = None
    batches = True
    parallel = max(1, os.cpu_count() or 1)

    def __init__(
        self,
        name: str,
        session: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        on_cpu: bool,
        steady: bool,
    ) -> None:
        self._name = name
        # On a GPU the thread mostly waits, which its CPU time does not show.
        self.steady = steady
        self._session = session
        # `InferenceSession.run` checks the names of the inputs again and looks for its own tensors among them, which
        # takes half as long as a tiny run. What reaches this line was checked by `validate`.
        inner = getattr(session, "_sess", None) if on_cpu else None
        self._run = inner.run if inner is not None else session.run
        self.inputs = inputs
        self.outputs = outputs
        self._names = [spec.name for spec in outputs]
        self._texts = {spec.name for spec in inputs if spec.dtype is Dtype.BYTES}
        self._controls: set[str] = set()
        """Controls that are text."""
        self.steps: Steps | None = None

    def sequences(self, model: ModelVersion, folder: Path, specs: Sequence[TensorSpec]) -> None:
        """Take steps of sequences from now on. `specs` are all inputs. Raises `LoadFailed`."""
        assert model.sequence is not None
        self._names += [state.output for state in model.sequence.states]
        self._controls = {spec.name for spec in specs if spec.dtype is Dtype.BYTES} - self._texts
        self.steps = TensorSteps(model, folder, {spec.name: spec for spec in specs}, self._step)

    def keeps_states(self, model: ModelVersion, place: Place) -> None:
        """Leave the states of sequences on a device, where model and device can do that."""
        host = self.steps
        if not isinstance(host, TensorSteps) or not fits(host) or self._texts or self._controls:
            return
        shown = [spec.name for spec in self.outputs]
        try:
            self.steps = DeviceSteps(model, host, self._session, shown, place)
        except Exception as error:  # noqa: BLE001 - what a driver says can be anything, and the host does it too
            log.warning("states go through the host", model=self._name, error=_first_line(error))

    def generates(self, model: ModelVersion, folder: Path, specs: Sequence[TensorSpec]) -> None:
        """Make text from now on. `specs` are all inputs. Raises `LoadFailed`."""
        assert model.generation is not None
        self._names = [model.generation.logits, *[state.output for state in model.generation.states]]
        lacks = sorted(set(self._names) - {each.name for each in self._session.get_outputs()})
        if lacks:
            raise LoadFailed(
                f"failed to load '{model.name}', it has no output {', '.join(lacks)}, which its generation names"
            )
        self._texts = set()
        self.steps = TextSteps(model, folder, {spec.name: spec for spec in specs}, self._step)

    def _step(self, inputs: Tensors) -> Tensors:
        if self._controls:
            inputs = {name: _text(array) if name in self._controls else array for name, array in inputs.items()}
        return self.run(inputs, _PLAIN)

    def admit(self, inputs: Tensors) -> Tensors:
        if not self._texts:
            return inputs
        try:
            return {name: _text(array) if name in self._texts else array for name, array in inputs.items()}
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"model '{self._name}' takes text: expected elements of {', '.join(sorted(self._texts))} in UTF-8, "
                f"got {bytes(error.object)[:40]!r}"
            ) from error

    def run(self, inputs: Tensors, request: Request) -> Tensors:
        return dict(zip(self._names, self._run(self._names, inputs, None), strict=True))

    def stream(self, inputs: Tensors, request: Request) -> Iterator[Tensors]:
        yield self.run(inputs, request)

    def close(self) -> None:
        self._session = None
        self._run = None


_PLAIN: Final = Request()


def between(model: ModelVersion) -> tuple[set[str], set[str]]:
    """Return the inputs and outputs that are between the node and the model: callers neither give nor get them."""
    if model.sequence is None:
        return set(), set()
    states = model.sequence.states
    given = {state.input for state in states} | {control.name for control in model.sequence.controls}
    return given, {state.output for state in states}


def _text(array: Any) -> Any:
    """Return the elements as str: ONNX strings are text, and BYTES may be anything. Raises UnicodeDecodeError."""
    flat = [item.decode() if isinstance(item, bytes) else item for item in array.ravel().tolist()]
    out = array.copy()
    out.reshape(-1)[:] = flat
    return out


def _options() -> Any:
    options = ort.SessionOptions()
    # Many models share few cores: parallelism comes from requests, and idle sessions must not own spinning threads.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _providers(spec: LoadSpec) -> list[Any]:
    if spec.device.kind is not DeviceKind.GPU:
        return ["CPUExecutionProvider"]
    if not has_cuda():
        raise LoadFailed(
            f"failed to load '{spec.model.name}', it asks for a gpu and this ONNX Runtime has no CUDA: install the "
            "extra 'gpu'"
        )
    limit = {"device_id": spec.device.index, "gpu_mem_limit": spec.device.free_bytes}
    return [(CUDA, {**limit, "arena_extend_strategy": "kSameAsRequested"}), "CPUExecutionProvider"]


def _signature(model: ModelVersion, kind: str, found: Any, declared: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return what the file says, checked against model.yaml where that declares it."""
    specs = []
    for value in found:
        dtype = _DTYPE.get(value.type)
        if dtype is None:
            raise LoadFailed(
                f"failed to load '{model.name}', {kind} '{value.name}' is a {value.type}, which cannot be carried"
            )
        shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in value.shape)
        specs.append(TensorSpec(value.name, dtype, shape))
    if not declared:
        return tuple(specs)
    real = {spec.name: spec for spec in specs}
    for spec in declared:
        if spec.name not in real or real[spec.name].dtype is not spec.dtype:
            has = ", ".join(f"{each.name} {each.dtype}" for each in specs)
            raise LoadFailed(
                f"failed to load '{model.name}', model.yaml has {kind} '{spec.name}' {spec.dtype}; the file has {has}"
            )
    return declared


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
