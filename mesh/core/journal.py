"""What a node's process died of, as far as it left word: whose death it was, and whose it was not.

A node keeps a small mapped file that says, at every moment, which versions are being loaded and are running in its
process. The next process of the same node reads what it left, with the words that a crash wrote. Then

| it ended | charged are |
|---|---|
| in order, or while it was stopping | none |
| with a crash (a fatal signal) or an exit of its own | the version whose code stands in the crashing thread's stack |
| ... when there is none, or several | those being loaded; else the one that ran, or, sharing it, all that ran |
| killed for want of memory | all that were being loaded or ran share it |
| without a word | a version that was being loaded, and was so when the process before ended without a word as well |

Without a word ends what is killed from outside: by an operator, by a supervisor, with its machine. That says nothing
about what happened to run, however often it is done, so it is never charged to what ran: good models under load run in
every process that an operator kills. A load is another matter. It is begun again by each new process, as placements
survive, so that a load that gets its process killed would do it for ever; two such ends in a row are enough, and a load
that went well between them clears it.

A model's ``os._exit`` leaves a word, too (`mesh.node.journal` writes it), and so does an exit in C code where a
supervisor tells the exit code (`mesh up`). Where nobody tells, that is an end without a word, and only the rule that a
call is sent to one other copy at most bounds it: better so than that killing nodes puts good models under suspicion.

Pure. O(versions).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.core.suspects import Death
from mesh.core.types import ModelName, Version
from mesh.core.view import VersionKey

MAGIC: Final = b"mesh journal 1\0\0"
HEADER_BYTES: Final = 64
SLOT_BYTES: Final = 512
SLOTS: Final = 1024
"""Versions in one process that can be told apart; more are not written down."""
SIZE: Final = HEADER_BYTES + SLOTS * SLOT_BYTES
"""Half a megabyte, of which only the pages of slots that are used exist."""

HEADER: Final = struct.Struct("<16sIIQ")
"""Magic, process id, state, count of processes killed for want of memory as of its start."""
SLOT: Final = struct.Struct("<IIII")
"""Running, loading, whether it was being loaded at the end of the process before, and bytes of the text behind."""
TEXT_BYTES: Final = SLOT_BYTES - SLOT.size

SERVING: Final = 1
STOPPING: Final = 2
CLOSED: Final = 3
"""States."""


@dataclass(frozen=True, slots=True)
class Held:
    """A version in a process that is no more."""

    name: ModelName
    version: Version
    digest: str
    path: str
    """Its folder."""
    running: int = 0
    loading: int = 0
    again: bool = False
    """Whether it was being loaded when the process before ended without a word, and had not been loaded since."""

    @property
    def key(self) -> VersionKey:
        """Name and version."""
        return self.name, self.version


@dataclass(frozen=True, slots=True)
class Last:
    """What a process left behind."""

    pid: int = 0
    state: int = SERVING
    held: tuple[Held, ...] = ()
    kills: int = 0
    """For want of memory, as of its start."""


@dataclass(frozen=True, slots=True)
class Charge:
    """A death that is a version's."""

    held: Held
    how: Death
    text: str


def read(data: bytes) -> Last | None:
    """Return what a journal says, None for bytes that are none. Never raises. O(slots)."""
    if len(data) < SIZE or not data.startswith(MAGIC):
        return None
    _, pid, state, kills = HEADER.unpack_from(data)
    return Last(pid, state, tuple(_slots(data)), kills)


def _slots(data: bytes) -> Iterator[Held]:
    for at in range(HEADER_BYTES, SIZE, SLOT_BYTES):
        running, loading, again, length = SLOT.unpack_from(data, at)
        if not 0 < length <= TEXT_BYTES:
            continue
        begin = at + SLOT.size
        try:
            text = data[begin : begin + length].decode(errors="surrogatepass")
            name, version, digest, path = json.loads(text)
        except ValueError:
            continue
        yield Held(ModelName(str(name)), Version(str(version)), str(digest), str(path), running, loading, bool(again))


def text_of(held: Held) -> bytes:
    """Return the text of a slot, without the path where that is too long; empty when the rest is, too."""
    for path in (held.path, ""):
        said = [held.name, held.version, held.digest, path]
        text = json.dumps(said, ensure_ascii=False).encode(errors="surrogatepass")
        if len(text) <= TEXT_BYTES:
            return text
    return b""


def charges(last: Last, word: str, *, starved: bool = False) -> tuple[Charge, ...]:
    """Return whose death the end of a process was.

    `word` is what its crash or exit wrote, empty for an end without a word; `starved` says that the kernel killed some
    process of its group for want of memory since it began.
    """
    if last.state == CLOSED:
        return ()
    loading = [each for each in last.held if each.loading]
    running = [each for each in last.held if each.running]
    if word:
        return _of_a_crash(last, loading, running, word)
    if last.state == STOPPING:
        return ()
    if starved:
        told = "its process was killed for want of memory"
        active = {each.key: each for each in (*loading, *running)}
        return tuple(Charge(each, Death.SHARED, told) for each in active.values())
    told = "its node was killed twice in a row while it was being loaded"
    return tuple(Charge(each, Death.LOADING, told) for each in loading if each.again)


def _of_a_crash(last: Last, loading: Sequence[Held], running: Sequence[Held], word: str) -> tuple[Charge, ...]:
    if last.state == STOPPING and is_exit(word):
        return ()  # A second signal, or a thread that did not end: the process left by itself.
    # One that is being loaded beside an older copy of itself is there twice.
    active = sorted(last.held, key=lambda each: bool(each.loading) * 2 + bool(each.running))
    named = {each.path: each for each in active if each.path and f"{each.path}/" in word}
    if len(named) == 1:
        (each,) = named.values()
        return (Charge(each, Death.LOADING if each.loading else Death.NODE, reason(word, each.path)),)
    why = reason(word)
    if loading:
        return tuple(Charge(each, Death.LOADING, why) for each in loading)
    how = Death.NODE if len(running) == 1 else Death.SHARED
    return tuple(Charge(each, how, why) for each in running)


EXIT: Final = "exit "
"""How the word of a process begins that a call of ``os._exit`` ended, before the code."""


def exit_note(pid: int) -> str:
    """Return the name of the file in which a supervisor says how a process ended: its exit code, -N for a signal N."""
    return f"{pid}.exit"


def is_exit(word: str) -> bool:
    """Tell whether a process ended by an exit and not by a fatal signal."""
    return word.startswith(EXIT)


def reason(word: str, path: str = "") -> str:
    """Return the word of a crash in one line: what it was, and where: in the files under `path`, if any is there."""
    lines = [line.strip() for line in word.splitlines() if line.strip()]
    if not lines:
        return ""
    what = f"it exited with code {lines[0].removeprefix(EXIT)}" if is_exit(word) else lines[0].removeprefix(_FATAL)
    files = [line for line in lines[1:] if line.startswith("File ")]
    where = next((line for line in files if f"{path}/" in line), files[0] if files else "")
    return f"{what} at {where.removeprefix('File ')}" if where else what


_FATAL: Final = "Fatal Python error: "
"""How CPython's faulthandler begins."""


def loading_at_the_end(last: Last) -> set[VersionKey]:
    """Return the versions that were being loaded when a process ended without a word."""
    return {each.key for each in last.held if each.loading}
