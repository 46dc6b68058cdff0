"""Files that `mesh apply` reads: YAML documents with a `kind`, into messages of mesh.v1.

Every mistake is told with the line it is on. What needs the mesh to be known (models, tensors) the router checks, and
`Manifest.line_of` finds the line of what it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import yaml

from mesh.api.messages import control
from mesh.core.types import Dtype

KINDS: Final = ("Pipeline",)


_TENSOR: Final = re.compile(rf"(:[ \t]+)((?:{'|'.join(Dtype.__members__)})[ \t]*\[[-\d, \t]*\])")
"""A type and a shape: inside braces YAML wants quotes around them, which nobody would think of."""


class BadManifest(ValueError):
    """A file that cannot be read: its name, the line, what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One document of a file."""

    file: str
    pipeline: control.Pipeline
    lines: Mapping[str, int]
    """Line by path, such as "steps[2].inputs.a"."""

    def line_of(self, path: str) -> int:
        """Return the line of `path`, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = re.sub(r"(\[\d+\]|(^|\.)[^.\[\]]+)$", "", path)
        return self.lines.get(path, 1)


def read(file: str, text: str) -> list[Manifest]:
    """Return the documents of `text`. Raises `BadManifest`."""
    try:
        quoted = _TENSOR.sub(r'\1"\2"', text)
        nodes = [node for node in yaml.compose_all(quoted, Loader=yaml.SafeLoader) if node is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        told = getattr(error, "problem", None) or "it is no YAML"
        raise BadManifest(f"{file}:{line}: expected YAML, {told}") from error
    if not nodes:
        raise BadManifest(f"{file}:1: expected a document such as 'kind: Pipeline', the file is empty")
    return [_Document(file, node).manifest() for node in nodes]


class _Document:
    """One document being read."""

    def __init__(self, file: str, node: Any) -> None:
        self._file = file
        self._node = node
        self.lines: dict[str, int] = {}

    def manifest(self) -> Manifest:
        fields = self._mapping(self._node, "", ("kind", "name", "inputs", "steps", "outputs"))
        kind = self._text(fields.get("kind"), "kind")
        if kind not in KINDS:
            raise self._bad(self._node, f"expected kind: {' or '.join(KINDS)}, got {kind!r}")
        pipeline = control.Pipeline(
            name=self._text(fields.get("name"), "name"),
            inputs=self._texts(fields.get("inputs"), "inputs"),
            outputs=self._texts(fields.get("outputs"), "outputs"),
        )
        for index, node in enumerate(self._items(fields.get("steps"), "steps")):
            pipeline.steps.append(self._step(node, f"steps[{index}]"))
        return Manifest(self._file, pipeline, self.lines)

    def _step(self, node: Any, at: str) -> control.Step:
        names = ("name", "model", "version", "inputs", "when", "each", "timeout", "retries", "on_error", "parameters")
        fields = self._mapping(node, at, names)
        step = control.Step(
            name=self._text(fields.get("name"), f"{at}.name"),
            model=self._text(fields.get("model"), f"{at}.model"),
            version=self._text(fields.get("version"), f"{at}.version"),
            inputs=self._texts(fields.get("inputs"), f"{at}.inputs"),
            when=self._text(fields.get("when"), f"{at}.when"),
            timeout_s=self._seconds(fields.get("timeout"), f"{at}.timeout"),
            retries=int(self._number(fields.get("retries"), f"{at}.retries")),
        )
        each = fields.get("each")
        if isinstance(each, yaml.ScalarNode):
            step.each.append(self._text(each, f"{at}.each"))
        else:
            step.each.extend(self._text(one, f"{at}.each") for one in self._items(each, f"{at}.each"))
        if "on_error" in fields:
            used = self._mapping(fields["on_error"], f"{at}.on_error", ("use",))
            step.on_error.use = self._text(used.get("use"), f"{at}.on_error.use")
        for name, value in self._pairs(fields.get("parameters"), f"{at}.parameters"):
            step.parameters[name].CopyFrom(self._value(value, f"{at}.parameters.{name}"))
        return step

    def _mapping(self, node: Any, at: str, names: tuple[str, ...]) -> dict[str, Any]:
        found = dict(self._pairs(node, at))
        for name, value in found.items():
            if name not in names:
                near = get_close_matches(name, names, n=1)
                meant = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names)}"
                raise self._bad(value, f"'{name}' is no field here; {meant}")
        return found

    def _pairs(self, node: Any, at: str) -> Iterator[tuple[str, Any]]:
        if node is None:
            return
        self.lines.setdefault(at, _line(node))
        if not isinstance(node, yaml.MappingNode):
            raise self._bad(node, f"expected fields with values{_in(at)}, got {_kind(node)}")
        seen: set[str] = set()
        for key, value in node.value:
            name = self._text(key, at)
            if name in seen:
                raise self._bad(key, f"'{name}' is there twice{_in(at)}")
            seen.add(name)
            self.lines[f"{at}.{name}" if at else name] = _line(key)
            yield name, value

    def _items(self, node: Any, at: str) -> Iterator[Any]:
        if node is None:
            return
        if not isinstance(node, yaml.SequenceNode):
            raise self._bad(node, f"expected a list{_in(at)}, got {_kind(node)}")
        for index, item in enumerate(node.value):
            self.lines[f"{at}[{index}]"] = _line(item)
            yield item

    def _texts(self, node: Any, at: str) -> dict[str, str]:
        return {name: self._text(value, f"{at}.{name}") for name, value in self._pairs(node, at)}

    def _text(self, node: Any, at: str) -> str:
        if node is None:
            return ""
        if not isinstance(node, yaml.ScalarNode):
            raise self._bad(node, f"expected a text{_in(at)}, got {_kind(node)}; put it into quotes")
        return str(node.value)

    def _number(self, node: Any, at: str) -> float:
        text = self._text(node, at)
        try:
            return float(text or 0)
        except ValueError:
            raise self._bad(node, f"expected a number{_in(at)}, got {text!r}") from None

    def _seconds(self, node: Any, at: str) -> float:
        """Return seconds of such as 2, 0.5, 2s or 500ms."""
        text = self._text(node, at)
        found = re.fullmatch(r"([0-9.]+)\s*(ms|s)?", text)
        try:
            return float(found[1]) * (0.001 if found[2] == "ms" else 1.0) if found else float(text or 0)
        except ValueError:
            raise self._bad(node, f"expected seconds such as 2s or 500ms{_in(at)}, got {text!r}") from None

    def _value(self, node: Any, at: str) -> control.Value:
        text = self._text(node, at)
        tag = node.tag.rpartition(":")[2]
        if tag == "bool":
            return control.Value(bool_value=text.lower() in {"true", "yes", "on"})
        if tag == "int":
            return control.Value(int_value=int(text, 0))
        return control.Value(float_value=float(text)) if tag == "float" else control.Value(text_value=text)

    def _bad(self, node: Any, told: str) -> BadManifest:
        return BadManifest(f"{self._file}:{_line(node)}: {told}")


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1 if node is not None else 1


def _in(at: str) -> str:
    return f" in {at}" if at else ""


def _kind(node: Any) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "fields with values" if isinstance(node, yaml.MappingNode) else repr(node.value)
