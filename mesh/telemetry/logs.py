"""Structured logs: a constant text and key/value pairs, one line per record on stderr.

Built on the standard library's logging, so levels and handlers of other packages keep working. What to log is left to
the callers: about one line per request at the edge, none in `mesh.core`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mesh.core.texts import shortened

ROOT: Final = "mesh"
LEVELS: Final = ("debug", "info", "warning", "error")

MAX_VALUE: Final = 8192
"""Characters of one value on a line. Callers can write much, and their words are quoted."""

MAX_TRACEBACK: Final = 32_768

_FIELDS: Final = "mesh_fields"
"""The attribute of a `logging.LogRecord` that carries the pairs."""


class Logger:
    """A named logger with pairs of its own that go on every line."""

    __slots__ = ("_bound", "_inner")

    def __init__(self, inner: logging.Logger, bound: Mapping[str, object]) -> None:
        self._inner = inner
        self._bound = bound

    def bind(self, **fields: object) -> Logger:
        """Return a logger that also puts `fields` on every line; later values win."""
        return Logger(self._inner, {**self._bound, **fields})

    def debug(self, text: str, /, **fields: object) -> None:
        """Log what only a developer wants to know."""
        if self._inner.isEnabledFor(logging.DEBUG):
            self._write(logging.DEBUG, text, fields)

    def info(self, text: str, /, **fields: object) -> None:
        """Log what an operator may want to know."""
        if self._inner.isEnabledFor(logging.INFO):
            self._write(logging.INFO, text, fields)

    def warning(self, text: str, /, **fields: object) -> None:
        """Log what went wrong but was dealt with."""
        if self._inner.isEnabledFor(logging.WARNING):
            self._write(logging.WARNING, text, fields)

    def error(self, text: str, /, **fields: object) -> None:
        """Log what went wrong and needs somebody."""
        if self._inner.isEnabledFor(logging.ERROR):
            self._write(logging.ERROR, text, fields)

    def exception(self, text: str, /, **fields: object) -> None:
        """Log an error together with the exception being handled and its traceback."""
        if self._inner.isEnabledFor(logging.ERROR):
            self._write(logging.ERROR, text, fields, exc_info=True)

    def _write(self, level: int, text: str, fields: Mapping[str, object], *, exc_info: bool = False) -> None:
        pairs = {**self._bound, **fields} if self._bound else fields
        self._inner.log(level, text, exc_info=exc_info, extra={_FIELDS: pairs})

    def __repr__(self) -> str:
        """Show the name and what is bound."""
        return f"<Logger {self._inner.name} bound={dict(self._bound)}>"


def get(name: str) -> Logger:
    """Return the logger `name`, such as "mesh.router.dispatch". Cheap; call it at import time."""
    return Logger(logging.getLogger(name), {})


def configure(level: str = "info", json: bool = False) -> None:  # noqa: FBT001, FBT002 - the CLI's one switch
    """Send every log line to stderr, as text or JSON, from `level` up for the mesh and warnings for other packages.

    Calling it again replaces the earlier choice. Raises ValueError for a level that is not in `LEVELS`.
    """
    if level not in LEVELS:
        raise ValueError(f"expected a log level of {', '.join(LEVELS)}, got {level!r}")
    handler = _MeshHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if json else TextFormatter())
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _MeshHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(level.upper())


class _MeshHandler(logging.StreamHandler[Any]):
    """Tells the handler that `configure` set from those of an embedding program."""


class TextFormatter(logging.Formatter):
    """`time level logger text key=value ...`, one line whatever the values hold."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        pairs = "".join(f" {key}={_plain(value)}" for key, value in _pairs(record).items())
        text = shortened(record.getMessage(), MAX_VALUE)
        line = text if text.isprintable() else _encode(text)
        return f"{_utc(record.created)} {record.levelname.lower()} {record.name} {line}{pairs}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, text, then the pairs (which cannot replace those four)."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        head = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": shortened(record.getMessage(), MAX_VALUE),
        }
        rest = {key if key not in head else f"{key}_": value for key, value in _pairs(record).items()}
        return _encode({**head, **rest})


def _pairs(record: logging.LogRecord) -> dict[str, object]:
    pairs: dict[str, object] = {
        key: shortened(value, MAX_VALUE) if isinstance(value, str) else value
        for key, value in dict(getattr(record, _FIELDS, ())).items()
    }
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        pairs.setdefault("error", shortened(f"{type(error).__name__}: {error}", MAX_VALUE))
        pairs["traceback"] = shortened(logging.Formatter().formatException(record.exc_info), MAX_TRACEBACK)
    return pairs


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = shortened(str(value), MAX_TRACEBACK)
    bare = text and text.isprintable() and not any(each in text for each in ' "=')
    return text if bare else _encode(text)


def _encode(value: object) -> str:
    try:
        return msgspec.json.encode(value, enc_hook=str).decode()
    except (ValueError, TypeError):  # lone surrogates or keys that JSON has no form for: still one line
        return msgspec.json.encode(ascii(value)).decode()


def _utc(seconds: float) -> str:
    whole, milli = divmod(int(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milli:03d}Z"
