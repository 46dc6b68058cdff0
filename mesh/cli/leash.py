"""Starts a program that must not outlive its parent, however the parent dies: `python -m mesh.cli.leash PARENT CMD...`.

On Linux the kernel does it (PR_SET_PDEATHSIG) and this process becomes the program. Elsewhere this process stays and
ends the program when its stdin, a pipe that the parent holds, ends. Imports nothing but the standard library: it runs
before every local etcd.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from typing import Final

PR_SET_PDEATHSIG: Final = 1
"""From linux/prctl.h."""


def main() -> None:
    """Become, or run, the program on a leash."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was told
            sys.exit(1)
        os.execvp(program[0], program)  # noqa: S606 - the supervisor's own command, no shell
    sys.exit(_stay(program))


def _stay(program: list[str]) -> int:
    child = subprocess.Popen(program, stdin=subprocess.DEVNULL)  # noqa: S603 - the supervisor's own command
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, _: child.send_signal(number))

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        child.kill()

    threading.Thread(target=watch, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    main()
