"""Values of `mesh infer --input` and `--param`: from text or files to arrays, and answers back to text.

Element types are those of the model's metadata; what a shape must be is left to the node, which knows best.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mesh.core.errors import InvalidRequest

Array = npt.NDArray[Any]
Parameter = bool | int | float | str

NUMPY: Final[Mapping[str, str]] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
"""numpy's name of each element type that can be written as text; BF16 has none in numpy."""


def split_pair(text: str, flag: str) -> tuple[str, str]:
    """Return name and value of `name=value`. Raises `InvalidRequest`."""
    name, mark, value = text.partition("=")
    if not name or not mark:
        raise InvalidRequest(f"{flag} must be name=value, got '{text}'")
    return name, value


def array(name: str, text: str, dtype: str) -> Array:
    """Return the array that `text` means for input `name` of element type `dtype` (KServe v2 name).

    `text` is JSON, or @ and the path of a .json or .npy file. Raises `InvalidRequest` with what was expected.
    """
    if text.startswith("@"):
        path = Path(text[1:])
        if not path.is_file():
            raise InvalidRequest(f"input '{name}': expected a file at {path}, found none")
        if path.suffix == ".npy":
            return _numpy_file(name, path, dtype)
        text = path.read_text(encoding="utf-8")
    try:
        value = json.loads(text)
    except ValueError as error:
        hint = "; quote texts, as in '[\"a\"]'" if dtype == "BYTES" else ""
        raise InvalidRequest(f"input '{name}' must be JSON such as [[1, 2]]: {error}{hint}") from None
    return _from_json(name, value, dtype)


def _numpy_file(name: str, path: Path, dtype: str) -> Array:
    try:
        found: Array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InvalidRequest(f"input '{name}': {path} is not a .npy file that can be read ({error})") from None
    if dtype == "BYTES":
        return _texts(name, found.tolist())
    if found.dtype != np.dtype(_numpy_name(name, dtype)):
        raise InvalidRequest(f"input '{name}' wants {dtype}; {path} holds {found.dtype}: convert it first")
    return found


def _from_json(name: str, value: object, dtype: str) -> Array:
    if dtype == "BYTES":
        return _texts(name, value)
    wanted = np.dtype(_numpy_name(name, dtype))
    try:
        raw = np.asarray(value)
    except ValueError:
        raise InvalidRequest(f"input '{name}': rows of the JSON have different lengths") from None
    if raw.size and (raw.dtype.kind not in "biuf" or (raw.dtype.kind == "b") != (wanted.kind == "b")):
        what = "true and false" if wanted.kind == "b" else "numbers"
        raise InvalidRequest(f"input '{name}' wants {dtype}: expected {what} in JSON")
    if wanted.kind in "iu" and raw.size:
        limits = np.iinfo(wanted)
        if raw.dtype.kind == "f" or int(raw.min()) < limits.min or int(raw.max()) > limits.max:
            raise InvalidRequest(
                f"input '{name}' wants {dtype}: expected whole numbers from {limits.min} to {limits.max}"
            )
    return raw.astype(wanted)


def _texts(name: str, value: object) -> Array:
    raw = np.asarray(value, dtype=object)
    flat = raw.reshape(-1)
    if any(not isinstance(each, str | bytes) for each in flat):
        raise InvalidRequest(f"input '{name}' wants BYTES: expected JSON lists of texts of equal length")
    found = np.empty(raw.shape, dtype=object)
    found.reshape(-1)[:] = [each.encode() if isinstance(each, str) else each for each in flat]
    return found


def _numpy_name(name: str, dtype: str) -> str:
    if dtype not in NUMPY:
        raise InvalidRequest(f"input '{name}' is {dtype}, which cannot be written as text: use the Python client")
    return NUMPY[dtype]


def parameter(text: str) -> Parameter:
    """Return the request parameter that `text` means: JSON where it is a bool or number, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | str) else text


def plain(value: Array) -> Any:
    """Return an array as what JSON can hold; bytes that are not UTF-8 become backslash escapes.

    Small floats become the shortest number that means them: 0.1 for FP32, not 0.10000000149011612.
    """
    if value.dtype.kind == "f" and value.dtype.itemsize < 8:
        short = [float(np.format_float_scientific(each, unique=True)) for each in value.reshape(-1)]
        return np.array(short, dtype=np.float64).reshape(value.shape).tolist()
    if value.dtype == object or value.dtype.kind in "SU":
        return _decoded(value.tolist())
    return value.tolist()


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
