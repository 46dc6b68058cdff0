"""What each program of the soak does: a run of it against a router or node, and what may come of that."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.core.errors import Code
from tests.conformance.soak.servers import NONE, Servers
from tests.fixtures.mesh import until

SMALL, MIDDLE, LARGE = "iris", "echo", "first"
"""Models: a few bytes, 600 KB there and back, 8 MB there alone (clients take answers up to 4 MB by default)."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to call. `flags` are those of the contract beside address, request and seconds."""

    name: str
    model: str
    flags: tuple[str, ...]
    restarts: bool = False
    """Whether the server ends by SIGTERM and starts again meanwhile."""


def _callers(count: int, *more: str) -> tuple[str, ...]:
    return ("--callers", str(count), *more)


GAPS: Final = ("--way", "stream", "--burst", "20", "--pause-ms", "1500")
CELLS: Final = (
    Cell("1 caller", SMALL, _callers(1)),
    Cell("2 callers", SMALL, _callers(2)),
    Cell("8 callers", SMALL, _callers(8)),
    Cell("4 callers, paced", SMALL, _callers(4, "--pause-ms", "10")),
    Cell("8 callers, paced", SMALL, _callers(8, "--pause-ms", "5")),
    Cell("4 streams with gaps", SMALL, _callers(4, *GAPS)),
    Cell("600 KB", MIDDLE, _callers(4)),
    Cell("600 KB, paced", MIDDLE, _callers(2, "--pause-ms", "50")),
    Cell("600 KB, streams with gaps", MIDDLE, _callers(2, *GAPS)),
    Cell("8 MB", LARGE, _callers(2)),
    Cell("one of five cancels", SMALL, _callers(4, "--gives-up", "cancel")),
    Cell("one of five has 1 to 2 ms", SMALL, _callers(4, "--gives-up", "deadline")),
    Cell("the server restarts", SMALL, _callers(4, "--pause-ms", "20"), restarts=True),
)

RESTART_S: Final = 3.0
"""How long calls go on before the restart, once there is a connection."""
AFTER_S: Final = 20.0
"""How much longer such a run takes: clients wait longer and longer before they connect again."""


@dataclass(slots=True)
class Outcome:
    """What came of a run. `connections` and `goaways` are the server's counts; a node's restart brings its router's."""

    calls: int = 0
    given_up: int = 0
    connections: int = 0
    goaways: dict[str, int] = field(default_factory=dict)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    restarted_s: float | None = None
    """When the server was ended to be started again."""
    error: str = ""
    """What the program said, where it ended badly."""
    end_s: float = 0.0

    @property
    def failures(self) -> int:
        """Calls that failed."""
        return sum(each["count"] for each in self.failed.values())

    def faults(self) -> list[str]:
        """Return what is wrong with it; nothing where all is well."""
        wrong = [self.error] if self.error else []
        if not self.calls:
            wrong.append("no call was answered")
        if self.restarted_s is None:
            wrong += [f"{each['count']} calls failed with {code}: {each['text']}" for code, each in self.failed.items()]
            if self.connections != 1:
                wrong.append(f"expected 1 connection, got {self.connections}")
            wrong += [f"{count} GOAWAYs with {code}" for code, count in self.goaways.items()]
            return wrong
        for code, each in self.failed.items():
            # Of the restart: only that the server was away, and over well before the end.
            if (
                code != str(Code.UNAVAILABLE.value)
                or each["first_s"] < self.restarted_s
                or each["last_s"] > self.end_s - 2
            ):
                wrong.append(f"{each['count']} calls failed with {code}, not of the restart: {each['text']}")
        wrong += [f"{count} GOAWAYs with {code}" for code, count in self.goaways.items() if code != "NO_ERROR"]
        return wrong

    def __str__(self) -> str:
        """Show the counts as the table has them."""
        goaways = ", ".join(f"{count} {code}" for code, count in self.goaways.items()) or "0"
        return f"{self.connections} connections, {goaways} GOAWAYs, {self.failures} of {self.calls} calls failed"


def run(command: Sequence[str], cell: Cell, servers: Servers, target: str, seconds: float) -> Outcome:
    """Run a built program against the router or node. Blocks for about `seconds`, with a restart `AFTER_S` more."""
    server = servers.of(target)
    before = server.counts()
    lasts_s = seconds + AFTER_S if cell.restarts else seconds
    given = ["--address", server.address, *servers.asks(cell.model), "--seconds", f"{lasts_s:g}", *cell.flags]
    process = subprocess.Popen([*command, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    found = Outcome()
    earlier = 0
    try:
        if cell.restarts:
            until(lambda: server.counts().opened > before.opened, what="the program has connected")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(RESTART_S)
            earlier = server.counts().opened - before.opened
            found.restarted_s = server.restart()
            before = NONE
        out, err = process.communicate(timeout=lasts_s + 120)
        found.end_s = time.time()
    finally:
        process.kill()
        process.wait()
    after = server.counts() if cell.restarts else server.quiet(before)
    found.connections = earlier + after.opened - before.opened
    found.goaways = {
        code: count - before.goaways.get(code, 0)
        for code, count in after.goaways.items()
        if count > before.goaways.get(code, 0)
    }
    if process.returncode:
        found.error = f"the program ended with {process.returncode}: {err.strip()[-2000:]}"
        return found
    said = json.loads(out.splitlines()[-1])
    found.calls, found.given_up, found.failed = said["calls"], said["given_up"], said["failed"]
    return found
