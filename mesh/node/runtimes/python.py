"""A user's Python class in the node's own process (``isolation: none``): model.py with ``class Model``.

What such a model may define, docs/model-repository.md says; `workers.inside.hosted` calls it, here and in workers. All
calls of one copy but the responses of a decoupled one go on one thread, as they do in a worker.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mesh.core.errors import LoadFailed, ModelFailed
from mesh.core.types import ModelVersion, TensorSpec
from mesh.node.runtimes.base import Loaded, LoadSpec, Request, Steps, Tensors
from mesh.node.runtimes.python_steps import steps_of
from mesh.node.workers.inside.hosted import FILE, CannotLoad, Context, Hosted, Left, Plan, said
from mesh.node.workers.raised import Raised

__all__ = ["FILE", "Context", "PythonRuntime"]

STREAMS = 32
"""Generators of one decoupled copy that may run at once: they mostly wait."""


_RAISED = Raised()


class PythonRuntime:
    """A `Runtime`."""

    in_process = True

    def load(self, spec: LoadSpec) -> Loaded:
        """Import model.py under a private name and construct its Model. Raises `LoadFailed`."""
        model = spec.model
        if not model.inputs or not model.outputs:
            raise LoadFailed(f"failed to load '{model.name}', a Python model declares inputs and outputs in model.yaml")
        device = f"{spec.device.kind.value}:{spec.device.index}"
        context = Context(model.name, model.version, spec.path, device, model.parameters)
        plan = Plan(
            context,
            decoupled=model.decoupled,
            sequence=model.sequence is not None,
            batched=model.max_batch_size > 0,
            shared=True,
        )
        executor = ThreadPoolExecutor(STREAMS if model.decoupled else 1, thread_name_prefix=f"model-{model.name}")
        try:
            hosted = executor.submit(Hosted, plan).result()
            loaded = _Instance(hosted, model, executor)
            loaded.steps = steps_of(hosted, model, spec.path, loaded.run)
        except CannotLoad as error:
            executor.shutdown(wait=False)
            raise LoadFailed(f"failed to load '{model.name}', {error}") from error
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return loaded


class _Instance:
    """A `Loaded`."""

    apart = None
    steady = False

    def __init__(self, hosted: Hosted, model: ModelVersion, executor: ThreadPoolExecutor) -> None:
        self._name = model.name
        self._model = model
        self._hosted = hosted
        self.executor = executor
        self.inputs: tuple[TensorSpec, ...] = model.inputs
        self.outputs: tuple[TensorSpec, ...] = model.outputs
        self.batches = not hosted.sees_request and not model.decoupled
        self.parallel = STREAMS if model.decoupled else 1
        self.steps: Steps | None = None

    def admit(self, inputs: Tensors) -> Tensors:
        return inputs

    def run(self, inputs: Tensors, request: Request) -> Tensors:
        try:
            return self._hosted.infer(_writable(inputs), request)
        except Left as error:
            _RAISED.tell(self._model, said(error), traceback.format_exc(), request.id)
            raise ModelFailed(f"model '{self._name}' raised {error}") from error
        except Exception as error:
            _RAISED.tell(self._model, said(error), traceback.format_exc(), request.id)
            raise

    def stream(self, inputs: Tensors, request: Request) -> Iterator[Tensors]:
        return self._hosted.stream(_writable(inputs), request)

    def close(self) -> None:
        try:
            self._hosted.close()
        finally:
            self.executor.shutdown(wait=False)


def _writable(inputs: Tensors) -> dict[str, Any]:
    """Return inputs that the model may write to, as in a worker and in a batch. A request's own bytes are not."""
    return {name: each if each.flags.writeable else np.array(each) for name, each in inputs.items()}
