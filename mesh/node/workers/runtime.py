"""Loading versions into worker processes: Python models by default, others that ask for it or that ended a process."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from mesh.core.errors import LoadFailed, WorkerDied
from mesh.core.types import Dtype, ModelVersion, TensorSpec
from mesh.node.runtimes.base import LoadSpec
from mesh.node.runtimes.onnx import between
from mesh.node.runtimes.python import STREAMS
from mesh.node.runtimes.text import text_signature
from mesh.node.workers.copy import WorkerCopy
from mesh.node.workers.memory import rss_bytes
from mesh.node.workers.raised import Raised
from mesh.node.workers.template import Template
from mesh.node.workers.worker import Worker
from mesh.telemetry import logs

log = logs.get(__name__)

_LAUNCH: Final = """\
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("mesh_worker", f"{sys.argv[1]}/__init__.py", submodule_search_locations=[sys.argv[1]])
sys.modules["mesh_worker"] = module_from_spec(spec)
sys.path[:] = [each for each in sys.path if each]
from mesh_worker.main import in_another_interpreter
in_another_interpreter()
"""
"""Imports the files of `inside` by their place, as the other interpreter has no mesh and no folder of ours in its path:
beside them lie files with names of the standard library's. The node's working folder is not looked into either."""
_FOLDER: Final = str(Path(__file__).parent / "inside")


class WorkerRuntime:
    """Loads on the event loop, as what takes long goes on elsewhere. One per node."""

    in_process = False

    def __init__(
        self, died: Callable[[ModelVersion, str], float], pause_left_s: Callable[[ModelVersion], float]
    ) -> None:
        """`died` is told what a model ended a worker by, and returns the seconds until it may be started again.

        `pause_left_s` says what is left of them.
        """
        self._died = died
        self._pause_left_s = pause_left_s
        self._template = Template()
        self._raised = Raised()
        self._loading: dict[Worker, ModelVersion] = {}

    async def warm(self) -> None:
        """Start what workers are forked from, so that the first cold start does not wait for it."""
        try:
            await self._template.warm()
        except LoadFailed as error:
            log.warning("workers cannot be started ahead of need", error=error.message)

    async def load(self, spec: LoadSpec) -> WorkerCopy:
        """Start the instances and load the model in each. Raises `LoadFailed`; cancelled, it leaves no process."""
        model = spec.model
        declared = model.inputs and model.outputs
        if model.runtime == "python" and not declared:
            raise LoadFailed(f"failed to load '{model.name}', a Python model declares inputs and outputs in model.yaml")
        command = _command(model)

        async def start() -> tuple[Worker, dict[str, Any]]:
            worker = Worker(await self._template.spawn(command), model, self._template, self._raised)
            self._loading[worker] = model
            try:
                return worker, await worker.load(_plan(spec), model.process.max_load_s)
            finally:
                del self._loading[worker]

        async def start_again() -> Worker:
            return (await self._loaded(model, start))[0]

        workers: list[Worker] = []
        try:
            facts = await self._load_all(model, start, workers)
            inputs, outputs, specs = _signature(model, facts)
            copy = WorkerCopy(
                model,
                inputs,
                outputs,
                workers=workers,
                facts=facts,
                start=start_again,
                on_death=self._died,
                pause_left_s=self._pause_left_s,
            )
            copy.uses(facts, spec.path, specs)
        except BaseException:
            for each in workers:
                each.kill()
            raise
        return copy

    async def _load_all(self, model: ModelVersion, start: Any, workers: list[Worker]) -> dict[str, Any]:
        """Load every instance, and add each that is there to `workers`; return what one found out about the model.

        Each is waited for, also when another failed, as none that comes later may be left behind.
        """

        async def add() -> dict[str, Any]:
            worker, facts = await self._loaded(model, start)
            workers.append(worker)
            return facts

        added = await asyncio.gather(*[add() for _ in range(model.process.instances)], return_exceptions=True)
        for each in added:
            if isinstance(each, BaseException):
                raise each
        return next(each for each in added if not isinstance(each, BaseException))

    async def _loaded(self, model: ModelVersion, start: Any) -> tuple[Worker, dict[str, Any]]:
        """Return a worker with the model loaded. One that the load ended is a death of the model's."""
        try:
            found: tuple[Worker, dict[str, Any]] = await start()
        except WorkerDied as error:
            self._died(model, error.message)
            raise LoadFailed(error.message) from None
        return found

    def look_at_loads(self, capacity: int) -> None:
        """End loads that take more memory than their model may, or than the CPU's account has at all."""
        for worker, model in list(self._loading.items()):
            limit = model.process.memory_limit_bytes or capacity
            held = rss_bytes(worker.pid) - worker.shared_bytes
            if held > limit:
                worker.kill(f"it took {held} bytes in its load, and may take {limit}")

    def close(self) -> None:
        """End every worker."""
        self._template.close()

    def __repr__(self) -> str:
        """Show the template."""
        return f"<WorkerRuntime {self._template!r}>"


def _plan(spec: LoadSpec) -> dict[str, Any]:
    model = spec.model
    return {
        "runtime": model.runtime,
        "name": model.name,
        "version": model.version,
        "path": str(spec.path),
        "device": f"{spec.device.kind.value}:{spec.device.index}",
        "parameters": dict(model.parameters),
        "decoupled": model.decoupled,
        "sequence": model.sequence is not None,
        "batched": model.max_batch_size > 0,
        "streams": model.process.streams or STREAMS,
        "record": msgspec.json.encode(_raw(model)).decode() if model.runtime != "python" else "",
        "free_bytes": spec.device.free_bytes,
    }


def _raw(model: ModelVersion) -> ModelVersion:
    """Return a version whose states are ordinary inputs and outputs: what is in between stays in the node."""
    if model.sequence is None and model.generation is None:
        return model
    return replace(model, sequence=None, generation=None, decoupled=False, inputs=(), outputs=())


def _command(model: ModelVersion) -> list[str] | None:
    """Return how a model's own interpreter is started; None: a fork of the template. Raises `LoadFailed`."""
    if not model.process.python:
        return None
    found = shutil.which(Path(model.process.python).expanduser())
    if found is None:
        raise LoadFailed(
            f"failed to load '{model.name}', expected a Python interpreter at {model.process.python} (python)"
        )
    return [str(found), "-c", _LAUNCH, _FOLDER]


def _signature(
    model: ModelVersion, facts: dict[str, Any]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs as callers see them, and all inputs of the file."""
    if model.runtime == "python":
        return model.inputs, model.outputs, ()
    all_inputs, all_outputs = (
        tuple(TensorSpec(name, Dtype(dtype), tuple(shape)) for name, dtype, shape in facts[kind])
        for kind in ("inputs", "outputs")
    )
    if model.generation is not None:
        return (*text_signature(model.generation), all_inputs)
    given, gives = between(model)
    inputs = model.inputs or tuple(each for each in all_inputs if each.name not in given)
    outputs = model.outputs or tuple(each for each in all_outputs if each.name not in gives)
    return inputs, outputs, all_inputs
