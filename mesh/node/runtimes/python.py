"""A user's Python class: ``class Model`` in model.py, with ``infer`` and optionally ``load`` and ``close``.

``load(self, context)`` runs once, in a thread. ``infer(self, inputs)`` takes and returns dicts of numpy arrays; with a
second parameter ``request`` it also sees the request's id and parameters, and its requests are not batched. In a
decoupled model ``infer`` is a generator of such dicts. One call at a time goes on per copy. What a model of sequences
and a step by step generation look like, `python_steps` says.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mesh.core.errors import LoadFailed
from mesh.core.types import ModelVersion, TensorSpec
from mesh.node.runtimes.base import Loaded, LoadSpec, Request, Steps, Tensors
from mesh.node.runtimes.python_steps import generates, steps_of

FILE = "model.py"

_serial = itertools.count()

STREAMS = 32
"""Generators of one decoupled copy that may run at once: they mostly wait."""


@dataclass(frozen=True, slots=True)
class Context:
    """What ``load`` is told."""

    name: str
    version: str
    path: Path
    """The version's folder."""
    device: str
    """Such as "cpu:0"."""
    parameters: Mapping[str, str]


class PythonRuntime:
    """A `Runtime`."""

    in_process = True

    def load(self, spec: LoadSpec) -> Loaded:
        """Import model.py under a private name and construct its Model. Raises `LoadFailed`."""
        model = spec.model
        if not model.inputs or not model.outputs:
            raise LoadFailed(f"failed to load '{model.name}', a Python model declares inputs and outputs in model.yaml")
        path = spec.path / FILE
        if not path.is_file():
            raise LoadFailed(f"failed to load '{model.name}', expected the file {FILE} in version {model.version}")
        module = _import(model, path)
        made = getattr(module, "Model", None)
        if made is None or not callable(getattr(made, "step" if generates(made, model) else "infer", None)):
            raise LoadFailed(f"failed to load '{model.name}', {FILE} must define a class Model with a method infer")
        try:
            instance = made()
            if hasattr(instance, "load"):
                device = f"{spec.device.kind.value}:{spec.device.index}"
                instance.load(Context(model.name, model.version, spec.path, device, model.parameters))
        except Exception as error:
            raise LoadFailed(f"failed to load '{model.name}', its load raised {_say(error)}") from error
        loaded = _Instance(instance, model, module.__name__)
        loaded.steps = steps_of(instance, model, spec.path, loaded.run)
        return loaded


class _Instance:
    """A `Loaded`."""

    steady = False

    def __init__(self, instance: Any, model: ModelVersion, module: str) -> None:
        self._instance = instance
        self._module = module
        self.inputs: tuple[TensorSpec, ...] = model.inputs
        self.outputs: tuple[TensorSpec, ...] = model.outputs
        self._sees_request = not generates(instance, model) and len(inspect.signature(instance.infer).parameters) > 1
        self.batches = not self._sees_request and not model.decoupled
        self.parallel = STREAMS if model.decoupled else 1
        self.steps: Steps | None = None

    def admit(self, inputs: Tensors) -> Tensors:
        return inputs

    def run(self, inputs: Tensors, request: Request) -> Tensors:
        outputs = self._call(inputs, request)
        if not isinstance(outputs, Mapping):
            msg = f"infer must return a dict of arrays by output name, got {type(outputs).__name__}"
            raise TypeError(msg)
        # A list is an array to numpy: without this it would pass alone and fail when requests are joined.
        return {name: np.asarray(value) for name, value in outputs.items()}

    def stream(self, inputs: Tensors, request: Request) -> Iterator[Tensors]:
        answered = self._call(inputs, request)
        if isinstance(answered, Mapping):
            yield answered
        else:
            yield from answered

    def _call(self, inputs: Tensors, request: Request) -> Any:
        given = dict(inputs)
        return self._instance.infer(given, request) if self._sees_request else self._instance.infer(given)

    def close(self) -> None:
        try:
            if hasattr(self._instance, "close"):
                self._instance.close()
        finally:
            self._instance = None
            sys.modules.pop(self._module, None)


def _import(model: ModelVersion, path: Path) -> ModuleType:
    """Import `path` under a name of its own, so that the model.py of two models (or two loads) never collide."""
    name = f"mesh_model_{next(_serial)}_{''.join(c if c.isalnum() else '_' for c in model.name)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadFailed(f"failed to load '{model.name}', {FILE} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # Registered while it runs, because dataclasses and pickling look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        raise LoadFailed(f"failed to load '{model.name}', importing {FILE} raised {_say(error)}") from error
    return module


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
