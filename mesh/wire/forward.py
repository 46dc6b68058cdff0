"""Headers that models read as parameters, on their way from the router to a node: one field ``name=value`` for each.

The router decides which they are (`mesh.core.forwarding`): it knows whether the caller came by gRPC or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote, unquote

from mesh.wire.transport import FORWARD_HEADER, Metadata

_PLAIN: Final = "!\"#$&'()*+,/:;<=>?@[]^`{|}"
"""Printable ASCII that stands for itself, beside letters, digits and ``_.-~``."""


def written(values: Mapping[str, str]) -> Metadata:
    """Return headers as they travel to a node."""
    return tuple((FORWARD_HEADER, f"{name}={quote(value, safe=_PLAIN)}") for name, value in values.items())


def read(fields: Iterable[str]) -> dict[str, str]:
    """Return the headers that `written` made fields of."""
    return {name: unquote(value) for name, _, value in (field.partition("=") for field in fields)}
