"""The node's journal: a mapped file that says what is loading and running in this process, for the one after it.

A mark is a store of four bytes into memory that the kernel keeps when the process is gone: no call, no lock, no write.
What a crash writes goes to a second file: the stack of the thread that crashed, by CPython's faulthandler, and the one
that called ``os._exit``. What it all means for whom is decided by `mesh.core.journal`.
"""

from __future__ import annotations

import faulthandler
import fcntl
import mmap
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from mesh.core import journal
from mesh.core.errors import LoadFailed
from mesh.core.journal import CLOSED, SERVING, STOPPING, Charge, Held, exit_note
from mesh.core.view import VersionKey
from mesh.node.runtimes.base import Loaded, LoadSpec, Runtime
from mesh.node.runtimes.watched import Marks, Watched
from mesh.telemetry import logs

log = logs.get(__name__)

MOST_WORD: Final = 16_384
"""Bytes of a crash's words that are read."""
_STATE_AT: Final = 20
"""Where the header has the state."""
_LOADING: Final = 1
_AGAIN: Final = 2
_LENGTH: Final = 3
"""Places in a slot, in numbers of four bytes behind `RUNNING`; see `mesh.core.journal.SLOT`."""


class Journal:
    """One per node process. Without a folder, or with one that cannot be used, it writes nothing down."""

    def __init__(self, folder: Path | None, node: str, registry: Sequence[str]) -> None:
        """Assign; `open` opens. The same node in another mesh (`registry`) is another one."""
        mesh = sha256(",".join(registry).encode()).hexdigest()[:8]
        self._folder = folder
        self._name = f"{quote(node, safe='')}-{mesh}"
        self._map: mmap.mmap | None = None
        self._marks: memoryview[int] | None = None
        """The file as numbers of four bytes."""
        self._lock = threading.Lock()
        """Of the slots: loads and closes are in threads."""
        self._word = -1
        self._pid = os.getpid()
        self._exit: Callable[[int], Any] = os._exit
        self._free: list[int] = []
        self._again: set[VersionKey] = set()
        """Versions that were being loaded when the process before ended without a word."""

    def open(self) -> tuple[Charge, ...]:
        """Begin; return whose death the end of the process before was. Call it once, before anything is loaded."""
        if self._folder is None:
            return ()
        try:
            return self._begin(self._folder)
        except OSError as error:
            log.warning("no journal is kept: a model that ends this node will not be known", error=str(error))
            return ()

    def _begin(self, folder: Path) -> tuple[Charge, ...]:
        folder.mkdir(parents=True, exist_ok=True)
        path, word_path = folder / f"{self._name}.journal", folder / f"{self._name}.word"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Held until the process ends: another live one with this id is refused later, and must not write here.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        last, word, kills = journal.read(os.pread(file, journal.SIZE, 0)), _read(word_path), _kills()
        found: tuple[Charge, ...] = ()
        if last is not None and last.state != CLOSED:
            word = word or _told(folder / exit_note(last.pid))
            found = journal.charges(last, word, starved=kills > last.kills)
            log.warning(
                "the process before this one did not end in order",
                why=journal.reason(word) or "it left no word",
                charged=",".join(f"{each.held.name}/{each.held.version}" for each in found),
            )
            self._again = set() if word else journal.loading_at_the_end(last)
        os.ftruncate(file, 0)
        os.ftruncate(file, journal.SIZE)
        self._map = mmap.mmap(file, journal.SIZE)
        self._map[: journal.HEADER.size] = journal.HEADER.pack(journal.MAGIC, self._pid, SERVING, kills)
        self._marks = memoryview(self._map).cast("I")
        self._free = list(range(journal.SLOTS - 1, -1, -1))
        self._word = os.open(word_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._listen()
        return found

    def _listen(self) -> None:
        """Have a crash and an exit leave word."""
        faulthandler.enable(self._word, all_threads=False)
        # CPython tells nobody of `os._exit`, neither its audit hooks nor `atexit`: this is the one place that can.
        os._exit = self._exiting  # type: ignore[assignment] # it does not return either
        os.register_at_fork(after_in_child=self._left)

    def _left(self) -> None:
        """In a child that a model forked: it writes nothing here."""
        faulthandler.disable()
        os._exit = self._exit  # type: ignore[assignment] # the real one again

    def _exiting(self, status: int) -> None:
        if os.getpid() == self._pid and self._word >= 0:
            frames = reversed(traceback.extract_stack()[:-1])
            stack = "\n".join(f'  File "{each.filename}", line {each.lineno} in {each.name}' for each in frames)
            os.write(self._word, f"{journal.EXIT}{status}\n{stack}\n".encode(errors="replace")[:MOST_WORD])
        self._exit(status)

    def stopping(self) -> None:
        """Say that this process is about to end."""
        self._set_state(STOPPING)

    def close(self) -> None:
        """Say that this process ends in order."""
        self._set_state(CLOSED)

    def _set_state(self, state: int) -> None:
        if self._map is not None:
            self._map[_STATE_AT : _STATE_AT + 4] = state.to_bytes(4, "little")

    def load(self, runtime: Runtime, spec: LoadSpec) -> Loaded:
        """Load a version into this process, with a mark; its runs are marked as well. Raises `LoadFailed`.

        Whatever a model raises to end the process (``sys.exit``) ends its load alone.
        """
        marks, at = self._take(spec)
        marks[at + _LOADING] = 1
        try:
            loaded = runtime.load(spec)
        except BaseException as error:
            marks[at + _LOADING] = 0
            self._give_back(marks, at)
            if isinstance(error, Exception):
                raise
            name = spec.model.name
            raise LoadFailed(f"failed to load '{name}', its load raised {type(error).__name__}: {error}") from error
        marks[at + _LOADING] = marks[at + _AGAIN] = 0
        self._again.discard((spec.model.name, spec.model.version))
        return Watched(spec.model.name, loaded, marks, at, lambda: self._give_back(marks, at))

    def _take(self, spec: LoadSpec) -> Marks:
        """Return where a version is marked: in the file as long as there is room, else where nobody reads it."""
        model = spec.model
        key = (model.name, model.version)
        text = journal.text_of(Held(*key, model.digest, str(spec.path)))
        with self._lock:
            if self._map is None or self._marks is None or not self._free or not text:
                return memoryview(bytearray(journal.SLOT.size)).cast("I"), 0
            at = self._free.pop()
            begin = journal.HEADER_BYTES + at * journal.SLOT_BYTES
            behind = begin + journal.SLOT.size
            self._map[behind : behind + len(text)] = text
            self._map[begin:behind] = journal.SLOT.pack(0, 0, int(key in self._again), len(text))
            return self._marks, begin // 4

    def _give_back(self, marks: memoryview[int], at: int) -> None:
        """Let a slot be another version's; one with a run that never ended stays as it is."""
        with self._lock:
            if marks is self._marks and not marks[at]:
                marks[at + _LENGTH] = 0
                self._free.append((at * 4 - journal.HEADER_BYTES) // journal.SLOT_BYTES)

    def __repr__(self) -> str:
        """Show whether it is kept, and of how many."""
        return f"<Journal {self._name} kept={self._map is not None} versions={journal.SLOTS - len(self._free)}>"


def _read(path: Path) -> str:
    """Return what a crash wrote; empty for nothing."""
    try:
        with path.open("rb") as file:
            return file.read(MOST_WORD).decode(errors="replace").strip()
    except OSError:
        return ""


def _told(path: Path) -> str:
    """Return what a supervisor wrote of the end of a process, as the word of that process; empty for nothing."""
    try:
        code = int(path.read_text())
        path.unlink()
    except (OSError, ValueError):
        return ""
    if -code in _FROM_OUTSIDE:
        return ""
    return f"{journal.EXIT}{code}" if code >= 0 else f"signal {-code}"


_FROM_OUTSIDE: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Signals that say nothing of what ran: somebody sent them."""


def _kills() -> int:
    """Return how many processes of this one's control group the kernel killed for want of memory; 0: it says not."""
    try:
        group = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        events = Path(f"/sys/fs/cgroup{group.removeprefix('0::')}/memory.events").read_text()
        return int(next(line for line in events.splitlines() if line.startswith("oom_kill ")).split()[1])
    except (OSError, ValueError, StopIteration, IndexError):
        return 0
