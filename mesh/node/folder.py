"""Reading a folder that anybody may have written to: what is odd in it ends in `BadFolder`, and never in more.

Owns what a file or a text must be so that it can be read at all: regular, of a size, of a depth. What it means is
`mesh.node.repository`'s.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml

CONFIG_BYTES: Final = 256 * 1024
"""Of a model.yaml: the largest that people write are a few KB, and etcd takes 1.5 MB in one request."""

LABELS_BYTES: Final = 16 * 1024 * 1024
"""Of a labels.txt: the 21,000 classes of ImageNet-21k take half a MB."""

MAX_FILES: Final = 100_000
"""In a version's folder."""

MAX_BYTES: Final = 1 << 42
"""Of a version, 4 TiB: beyond it is a mistake, such as a link to /proc/kcore, that would be read for hours."""

MAX_DEPTH: Final = 64
"""Of folders in folders, and of values in values in model.yaml."""

MAX_VALUES: Final = 10_000
"""In a model.yaml, each counted as often as aliases repeat it."""

MAX_INT: Final = (1 << 63) - 1

SHOWN_CHARS: Final = 300
"""Of a path or a reason, where it is told to people."""


class BadFolder(Exception):
    """A folder that cannot be served, and why."""


def shown(text: str, most: int = SHOWN_CHARS) -> str:
    """Return `text` as a person, a log and a protobuf message can take it: printable, and not long."""
    if len(text) > most:
        text = text[: most - 3] + "..."
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def reason_of(error: Exception) -> str:
    """Return why a folder is refused, in a text that can be told to people."""
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f" ({os.path.basename(os.fsdecode(error.filename))})"  # noqa: PTH119 - of bytes or text
        return shown(f"{error.strerror}{name}")
    return shown(str(error) if isinstance(error, BadFolder) else repr(error))


def is_folder(entry: os.DirEntry[str] | Path) -> bool:
    """Tell whether it is a folder, as far as that can be found out. Blocks."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def read_file(path: Path, most: int) -> bytes | None:
    """Return the bytes of a file; None when there is none. Blocks.

    Raises `BadFolder` for one that is no regular file (reading a pipe would never end) or longer than `most`, and
    OSError.
    """
    try:
        opened = _opened(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise BadFolder(f"{path.name} is longer than {most} bytes")
    return data


def digest_of(path: Path) -> bytes:
    """Return the SHA-256 of a regular file. Blocks. Raises `BadFolder` for another kind of file, and OSError."""
    with _opened(path) as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _opened(path: Path) -> io.BufferedReader:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise BadFolder(f"{shown(path.name)} is no regular file")


def files_of(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the regular files below a version's folder, in order; not those below a link to a folder. Blocks.

    A file that goes while it is looked at is passed over. Raises `BadFolder` for more than anybody means, and OSError.
    """
    found: list[tuple[Path, os.stat_result]] = []
    size = 0
    for path, about in _walk(folder, 0):
        found.append((path, about))
        size += about.st_size
        if len(found) > MAX_FILES:
            raise BadFolder(f"it has more than {MAX_FILES} files")
        if size > MAX_BYTES:
            raise BadFolder(f"its files have more than {MAX_BYTES} bytes")
    return sorted(found)


def _walk(folder: Path, depth: int) -> Iterator[tuple[Path, os.stat_result]]:
    if depth > MAX_DEPTH:
        raise BadFolder(f"its folders are nested more than {MAX_DEPTH} deep")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == "__pycache__":
                continue
            try:
                about = entry.stat()
            except OSError:
                continue  # It went, or is a link to nothing or to itself: there is nothing to read.
            if stat.S_ISREG(about.st_mode):
                yield folder / entry.name, about
            elif stat.S_ISDIR(about.st_mode) and not entry.is_symlink():
                yield from _walk(folder / entry.name, depth + 1)


def check_yaml(data: bytes) -> None:
    """Raise `BadFolder` for YAML that is more than it looks: aliases of aliases, values nested without end.

    O(bytes): aliases are counted and not followed.
    """
    try:
        _count(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadFolder(f"model.yaml: {shown(' '.join(str(error).split()))}") from error


def check_numbers(value: object) -> None:
    """Raise `BadFolder` for a whole number that no message of the protocol can carry."""
    if isinstance(value, int) and not -MAX_INT - 1 <= value <= MAX_INT:
        raise BadFolder(f"model.yaml: {shown(hex(value), 40)} is no number of 64 bits")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        check_numbers(each)


def _count(data: bytes) -> None:
    sizes: dict[str | None, int] = {}
    """By anchor: how many values it stands for."""
    anchors: list[str | None] = []
    counts = [0]
    """Of the collections that are open, the outermost first, below the whole."""
    for event in yaml.parse(data, Loader=_LOADER):
        size, anchor = 0, None
        match event:
            case yaml.AliasEvent():
                # What has not ended is in itself, and so without end.
                size = sizes.get(event.anchor, MAX_VALUES + 1)
            case yaml.ScalarEvent():
                # A long text that is repeated takes memory as often.
                size, anchor = 1 + len(event.value) // 64, event.anchor
            case yaml.CollectionStartEvent():
                sizes.pop(event.anchor, None)
                anchors.append(event.anchor)
                counts.append(1)
                if len(anchors) > MAX_DEPTH:
                    raise ValueError(f"values are nested more than {MAX_DEPTH} deep")
            case yaml.CollectionEndEvent():
                size, anchor = counts.pop(), anchors.pop()
        if anchor is not None:
            sizes[anchor] = size
        counts[-1] += size
        if counts[-1] > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES} values, counted as often as aliases repeat them")


_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML was built with it: ten times as fast."""
