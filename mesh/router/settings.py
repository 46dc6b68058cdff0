"""TraceSetting and LogSettings: what operators change on a running router.

The settings that mean something here have effect; the others of Triton's are refused with a sentence.
"""

from __future__ import annotations

import logging
from typing import Any

from mesh.api.gen.inference import grpc_service_pb2 as pb
from mesh.core.errors import InvalidRequest
from mesh.telemetry.tracing import Tracing

_LOG_LEVELS = {"log_error": logging.ERROR, "log_warning": logging.WARNING, "log_info": logging.INFO}


class Settings:
    """Holds what was set. Settings are this router's own and end with it."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._default_ratio = tracing.sample_ratio

    def trace(self, request: Any) -> Any:
        """Apply and return the trace settings. Raises `InvalidRequest` for one that means nothing here.

        ``trace_rate`` N samples one request of N, as Triton does; ``trace_level`` OFF samples none. Setting an empty
        value restores the default. Tracing must have been configured when the router started (an OTLP endpoint).
        """
        if request.model_name:
            raise InvalidRequest("trace settings of single models are not offered: leave model_name empty")
        for name, setting in request.settings.items():
            value = setting.value[0] if setting.value else ""
            if name == "trace_rate":
                self._tracing.set_sample_ratio(1 / _positive(name, value) if value else self._default_ratio)
            elif name == "trace_level":
                if value not in ("", "OFF", "TIMESTAMPS"):
                    raise InvalidRequest(f"trace_level must be OFF or TIMESTAMPS, got '{value}'")
                self._tracing.set_sample_ratio(0.0 if value == "OFF" else self._default_ratio)
            else:
                raise InvalidRequest(f"trace setting '{name}' is not offered: only trace_level and trace_rate are")
        ratio = self._tracing.sample_ratio
        answer = pb.TraceSettingResponse()
        answer.settings["trace_level"].value.append("TIMESTAMPS" if ratio else "OFF")
        answer.settings["trace_rate"].value.append(str(round(1 / ratio) if ratio else 0))
        answer.settings["trace_mode"].value.append("opentelemetry")
        return answer

    def logging(self, request: Any) -> Any:
        """Apply and return the log settings. Raises `InvalidRequest` for one that means nothing here."""
        root = logging.getLogger("mesh")
        for name, setting in request.settings.items():
            kind = setting.WhichOneof("parameter_choice")
            if name in _LOG_LEVELS and kind == "bool_param":
                root.setLevel(_level_after(root.getEffectiveLevel(), name, on=setting.bool_param))
            elif name == "log_verbose_level" and kind == "uint32_param":
                root.setLevel(logging.DEBUG if setting.uint32_param else logging.INFO)
            else:
                raise InvalidRequest(
                    f"log setting '{name}' ({kind}) is not offered: log_error, log_warning and log_info take a bool, "
                    "log_verbose_level a uint32"
                )
        level = root.getEffectiveLevel()
        answer = pb.LogSettingsResponse()
        for name, at in _LOG_LEVELS.items():
            answer.settings[name].bool_param = level <= at
        answer.settings["log_verbose_level"].uint32_param = int(level <= logging.DEBUG)
        return answer


def _level_after(level: int, name: str, *, on: bool) -> int:
    """Return the level that shows `name` if `on`, or hides it and all below."""
    at = _LOG_LEVELS[name]
    if on:
        return min(level, at)
    return max(level, at + 10)


def _positive(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise InvalidRequest(f"{name} must be a whole number of at least 1, got '{value}'")
    return int(value)
