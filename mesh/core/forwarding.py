"""Which headers of a call models read as parameters of its requests, and which they may never be (Triton's rules).

A pattern is searched for in the header's name, as Triton does with RE2's PartialMatch; its flags
``--grpc-header-forward-pattern`` and ``--http-header-forward-pattern`` mean the same here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from mesh.core.errors import InvalidRequest

Pattern = re.Pattern[str]

CASED: Final = "(?-i)"
"""Before a pattern: capitals count. Without it they do not, as in HTTP. gRPC's metadata has none."""

RESERVED: Final = frozenset(
    {"sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output"}
)
"""Parameters that steer the server (Triton's list): a header must not stand in for them."""
_RESERVED_PREFIXES: Final = ("triton_", "mesh_")

_BETWEEN: Final = frozenset({"triton_grpc_error", "mm-model-id", "mm-vmodel-id", "te"})
"""Said between the caller and who takes its call; like those with the prefixes, no parameter whatever the pattern."""
_BETWEEN_PREFIXES: Final = ("mesh-", "grpc-", ":")

NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
"""What is forwarded of a call without such headers."""


def header_pattern(text: str) -> Pattern | None:
    """Return the pattern of a flag, None for an empty text. Raises ValueError with the mistake."""
    if not text:
        return None
    try:
        return re.compile(text.removeprefix(CASED), 0 if text.startswith(CASED) else re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"expected a regular expression for names of headers, got {text!r}: {error}") from error


def forwarded(pattern: Pattern | None, headers: Iterable[tuple[str, str | bytes]]) -> Mapping[str, str]:
    """Return the headers that match, by name; the last value of one that came twice.

    Binary ones (-bin) are left out: parameters are text. Raises `InvalidRequest` for a name that is reserved.
    O(headers), and nothing without a pattern.
    """
    if pattern is None:
        return NOTHING
    found: dict[str, str] = {}
    for name, value in headers:
        if name in _BETWEEN or name.startswith(_BETWEEN_PREFIXES) or name.endswith("-bin"):
            continue
        if pattern.search(name) is None:
            continue
        if name in RESERVED or name.startswith(_RESERVED_PREFIXES):
            raise InvalidRequest(f"Header '{name}' is reserved for Triton usage and cannot be forwarded.")
        found[name] = _text(value)
    return found or NOTHING


def _text(value: str | bytes) -> str:
    """Return a value as text: headers are bytes, UTF-8 where anybody cares, and text stands for bytes one by one."""
    raw = value.encode("latin-1", "replace") if isinstance(value, str) else value
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
