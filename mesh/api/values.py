"""Literals in mesh.v1 messages. Imports the messages alone: the client package carries it along."""

from __future__ import annotations

from mesh.api.messages import control

Literal = bool | int | float | str


def read_value(said: control.Value) -> Literal:
    """Return a literal; an empty text for a value that is none."""
    kind = said.WhichOneof("kind")
    value: Literal = getattr(said, kind) if kind else ""
    return value


def value_message(value: Literal) -> control.Value:
    """Return a literal as it travels."""
    if isinstance(value, bool):
        return control.Value(bool_value=value)
    if isinstance(value, int):
        return control.Value(int_value=value)
    return control.Value(float_value=value) if isinstance(value, float) else control.Value(text_value=value)
