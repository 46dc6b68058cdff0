"""An ONNX version in a worker: what `inside.main` hosts instead of a Python class. Imported in the worker alone.

States of sequences are ordinary inputs and outputs to it: what is kept from step to step stays in the node.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from mesh.core.errors import LoadFailed
from mesh.core.types import Device, DeviceKind, ModelVersion
from mesh.node.runtimes.base import LoadSpec, Request
from mesh.node.runtimes.onnx import OnnxRuntime
from mesh.node.workers.inside.hosted import CannotLoad, Tensors

_PLAIN = Request()


class OnnxHost:
    """A session."""

    generates = False

    def __init__(self, plan: dict[str, Any]) -> None:
        """Open it. Raises `CannotLoad`."""
        model = msgspec.json.decode(plan["record"], type=ModelVersion)
        kind, _, index = plan["device"].partition(":")
        device = Device(DeviceKind(kind), int(index), "", plan["free_bytes"], plan["free_bytes"])
        try:
            self._loaded = OnnxRuntime().load(LoadSpec(model, Path(plan["path"]), device))
        except LoadFailed as error:
            raise CannotLoad(error.message.removeprefix(f"failed to load '{model.name}', ")) from error

    def facts(self) -> dict[str, Any]:
        """Return what the node has to know: the signature of the file."""
        signature = {
            kind: [[each.name, each.dtype.value, list(each.shape)] for each in specs]
            for kind, specs in (("inputs", self._loaded.inputs), ("outputs", self._loaded.outputs))
        }
        return {"generates": False, "sees_request": False, "sees_sequences": False, **signature}

    def infer(self, inputs: Tensors, request: Any) -> dict[str, Any]:
        """Run it."""
        del request
        return dict(self._loaded.run(self._loaded.admit(inputs), _PLAIN))

    def close(self) -> None:
        """Give the memory back."""
        self._loaded.close()
