"""How people write the parts of a pipeline: ``$input``, ``step.output``, ``a.x | b.x``, ``router.class == 1``,
``FP32 [-1, 4]``. Each function raises `BadText` with what was expected and what came, for any text.
"""  # noqa: D205 - the examples are the summary

from __future__ import annotations

import re
from typing import Final

from mesh.core.pipeline.spec import Condition, Literal, Op, Ref, Source
from mesh.core.types import Dtype, TensorSpec

_NAME: Final = r"[^\s.$|/\[\]\"'<>=!]+"
_REF: Final = re.compile(rf"\s*(?:\$(?P<input>{_NAME})|(?P<step>{_NAME})\.(?P<tensor>[^\s|$]+))\s*")
_CONDITION: Final = re.compile(r"\s*(?P<ref>\S+)\s*(?P<op>==|!=|<=|>=|<|>)\s*(?P<value>.+?)\s*", re.DOTALL)
_SPEC: Final = re.compile(r"\s*(?P<dtype>[A-Z0-9]+)\s*\[(?P<shape>[-\d,\s]*)\]\s*")
_MOST_AXES: Final = 32
LONGEST: Final = 1024
"""Of one text: people write a few dozen characters, and what reads them takes the square of their number at worst."""
LONGEST_NAME: Final = 256


class BadText(ValueError):
    """A part of a pipeline that cannot be read."""


def name(text: str) -> str:
    """Return `text` if a pipeline or a step may be called so."""
    if len(text) > LONGEST_NAME:
        raise BadText(f"expected a name of at most {LONGEST_NAME} characters, got {len(text)}")
    if not re.fullmatch(_NAME, text):
        raise BadText(f"expected a name without spaces and without any of . $ | / [ ] < > = ! and quotes, got {text!r}")
    return text


def ref(text: str) -> Ref:
    """Return the tensor that ``$input`` or ``step.output`` names."""
    found = _REF.fullmatch(text)
    if found is None:
        raise BadText(f"expected '$input' or 'step.output', got {text!r}")
    return Ref(found["step"] or "", found["input"] or found["tensor"])


def source(text: str) -> Source:
    """Return where a tensor comes from; ``a.x | b.x`` is the first of two that ran."""
    return tuple(ref(part) for part in text.split("|"))


def condition(text: str) -> Condition:
    """Return the condition that ``step.output == 1`` or ``$input != 'text'`` is."""
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise BadText(f"expected a condition such as 'step.output == 1', got {text!r}")
    return Condition(ref(found["ref"]), Op(found["op"]), _literal(found["value"]))


def tensor(called: str, text: str) -> TensorSpec:
    """Return the tensor that ``FP32 [-1, 4]`` describes."""
    found = _SPEC.fullmatch(text)
    if found is None or found["dtype"] not in Dtype.__members__:
        types = ", ".join(Dtype.__members__)
        raise BadText(f"expected a type and a shape such as 'FP32 [-1, 4]' (types: {types}), got {text!r}")
    shape = found["shape"].strip()
    try:
        axes = tuple(int(axis) for axis in shape.split(",")) if shape else ()
    except ValueError:
        axes = (-2,)
    if len(axes) > _MOST_AXES or any(axis < -1 for axis in axes):
        raise BadText(f"expected a shape of at most {_MOST_AXES} numbers from -1 (any) on, got {text!r}")
    return TensorSpec(called, Dtype[found["dtype"]], axes)


def _literal(text: str) -> Literal:
    if text in {"true", "false"}:
        return text == "true"
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise BadText(f"expected a number, true, false or a text in quotes to compare with, got {text!r}")
