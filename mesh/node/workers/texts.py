"""Long arrays of text on their way to a worker and back: taken apart and put together in a thread, not on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from mesh.core.errors import ModelFailed
from mesh.node.runtimes.base import Array, Finished
from mesh.node.workers.inside.port import HeldText, Rows
from mesh.node.workers.inside.values import BadValue
from mesh.node.workers.line import HELD_ELEMENTS


def is_long(array: Any) -> bool:
    """Tell whether an input is a text too long for the loop."""
    return type(array) is not Rows and array.dtype.kind in "OSU" and array.size > HELD_ELEMENTS


def has_held(outputs: Any) -> bool:
    """Tell whether an output is a long text that is still to be taken apart."""
    return any(type(each) is HeldText for each in outputs.values())


def whole(outputs: Any) -> Any:
    """Return outputs with their long texts taken apart. Raises `ModelFailed`."""
    try:
        return {name: each.array() if type(each) is HeldText else each for name, each in outputs.items()}
    except BadValue as error:
        raise ModelFailed(f"the worker's answer cannot be read: {error}") from error


async def finish_text(message: list[Any], finished: Finished) -> None:
    """Tell how a run ended that answered long texts."""
    try:
        outputs = await asyncio.to_thread(whole, message[3])
    except ModelFailed as error:
        finished({}, 0.0, error)
        return
    finished(outputs, message[2] / 1e9, None)


async def travelling(inputs: Mapping[str, Array | Rows]) -> dict[str, Any]:
    """Return inputs with long arrays of text as they travel. Raises `ModelFailed`."""
    found: dict[str, Any] = {}
    for name, array in inputs.items():
        try:
            found[name] = await asyncio.to_thread(HeldText.of, array) if is_long(array) else array
        except BadValue as error:
            raise ModelFailed(f"input '{name}' cannot be given to a worker: {error}") from error
    return found
