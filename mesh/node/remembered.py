"""What a scan of a model's folder found, kept for as long as nothing in the folder looks another way.

Looking (names, kinds, sizes, times, inodes of everything below) costs a fifth of reading: no YAML is read, nothing is
hashed or checked. What is refused is read each time: its trouble may pass without a trace in the folder.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.core.types import ModelVersion
from mesh.node.folder import MAX_DEPTH, MAX_FILES

SETTLED_NS: Final = 2_000_000_000
"""Age of the last change from which a look is believed: times have steps, of 4 ms here and of 2 s on FAT, within which
a second change would look like none."""

Digests = Mapping[tuple[str, int, int], bytes]

Look = tuple[tuple[str, int, int, int, int, int], ...]
"""Of each thing in a folder: path, mode, size, mtime, ctime (ns), inode."""


@dataclass(frozen=True, slots=True)
class Known:
    """What was found in a folder that looked so."""

    look: Look
    found: Sequence[ModelVersion]
    digests: Digests


def look_at(folder: Path) -> Look | None:
    """Return how a model's folder looks now; None when that cannot be said, or it changed only just now. Blocks.

    It follows links as a scan does: those to version folders, and to files.
    """
    seen: list[tuple[str, int, int, int, int, int]] = []
    try:
        _look(str(folder), "", 0, seen)
    except (OSError, ValueError):
        return None
    newest_ns = max((max(each[3], each[4]) for each in seen), default=0)
    if len(seen) > MAX_FILES or newest_ns > time.time_ns() - SETTLED_NS:
        return None
    return tuple(sorted(seen))


def _look(folder: str, below: str, depth: int, seen: list[tuple[str, int, int, int, int, int]]) -> None:
    about = os.stat(folder)  # noqa: PTH116 - a Path for each of 100,000 folders takes longer than the call
    seen.append((below, about.st_mode, 0, about.st_mtime_ns, about.st_ctime_ns, about.st_ino))
    if depth > MAX_DEPTH or len(seen) > MAX_FILES:
        raise ValueError("more than is remembered")
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{below}/{entry.name}"
            about = entry.stat()
            if stat.S_ISDIR(about.st_mode):
                if entry.is_symlink() if depth else not entry.name.isdecimal():
                    seen.append((name, about.st_mode, 0, 0, 0, about.st_ino))
                else:
                    _look(entry.path, name, depth + 1, seen)
            else:
                seen.append((name, about.st_mode, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino))
