"""Plain tables for people: aligned columns that also read well in a file or a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows under their header, columns two spaces apart; numbers are aligned by the caller's choice."""
    widths = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def size(count: int) -> str:
    """Return a number of bytes as a person says it, such as "1.5 MiB"."""
    value = float(count)
    for unit in UNITS[:-1]:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {UNITS[-1]}"


def milliseconds(seconds: float) -> str:
    """Return a time as milliseconds, three digits that matter."""
    return f"{seconds * 1000:.3g} ms"


def short(text: str, width: int = 72) -> str:
    """Return `text` on one line, cut with dots when it is longer than `width`."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."
