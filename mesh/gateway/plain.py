"""A protobuf message as plain JSON values, as Triton writes them over HTTP: fields by their own names, unset ones too.

protobuf's own JSON writes 64-bit integers as texts, which clients of KServe v2 and Triton do not expect.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message


def plain(message: Message) -> dict[str, Any]:
    """Return the fields of a message: numbers, texts, lists, dicts; bytes as base64, enumerations by name.

    A message or a member of a oneof that is not set is left out.
    """
    made: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if _is_map(field):
            kind = _value_of(field)
            made[field.name] = {str(key): _one(kind, each) for key, each in sorted(value.items())}
        elif _is_repeated(field):
            made[field.name] = [_one(field, each) for each in value]
        elif not field.has_presence or message.HasField(field.name):
            made[field.name] = _one(field, value)
    return made


def _is_repeated(field: Any) -> bool:
    repeated: bool = field.is_repeated
    return repeated


def _value_of(field: Any) -> Any:
    return field.message_type.fields_by_name["value"]


def _is_map(field: Any) -> bool:
    is_map: bool = field.message_type is not None and field.message_type.GetOptions().map_entry
    return is_map


def _one(field: Any, value: Any) -> Any:
    if field.type == Field.TYPE_MESSAGE:
        return plain(value)
    if field.type == Field.TYPE_ENUM:
        named = field.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    if field.type == Field.TYPE_BYTES:
        return base64.b64encode(value).decode("ascii")
    return value


def settings_plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return trace or log settings as Triton's HTTP port shows them: a list for trace_level, else one value."""
    told: dict[str, Any] = {}
    for name, setting in settings.items():
        if hasattr(setting, "value"):
            values = list(setting.value)
            told[name] = values if name == "trace_level" or len(values) != 1 else values[0]
        else:
            told[name] = getattr(setting, setting.WhichOneof("parameter_choice"))
    return told
