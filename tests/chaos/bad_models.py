"""Models that do what no model should, each in its own way: what `tests.chaos.blast` asks beside good ones."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.fixtures.models import folder_of

SIGNATURE: Final = """\
inputs: [{name: x, dtype: FP32, shape: [-1, 1]}]
outputs: [{name: y, dtype: FP32, shape: [-1, 1]}]
"""

_CODE: Final = """\
import ctypes, os, re, sys, time
import numpy

class Model:
    kept = []

    def load(self, context):
        {load}

    def infer(self, inputs):
        if inputs["x"].any():
            {infer}
        return {{"y": inputs["x"]}}
"""

_FORK: Final = """
            if not os.fork():
                if not os.fork():
                    os.setsid()
                time.sleep(3600)
"""

BAD: Final[dict[str, tuple[str, str, str]]] = {
    "crash": ("pass", "ctypes.string_at(0)", ""),
    "exit": ("pass", "os._exit(3)", ""),
    "sys-exit": ("pass", "sys.exit('over')", ""),
    "raise": ("pass", "raise ValueError('expected something else')", ""),
    "hang": ("pass", "time.sleep(1e6)", "max_run_s: 1"),
    "gil": ("pass", "re.match(r'(a+)+$', 'a' * 36 + 'b')", "max_run_s: 2"),
    "print": ("pass", "while True: print('x' * 200)", "max_run_s: 2"),
    "leak": ("pass", "self.kept.append(numpy.ones(50_000_000, numpy.uint8))", "memory_limit_bytes: 300000000"),
    "fork": ("pass", _FORK.strip(), "memory_limit_bytes: 300000000"),
    "load-hang": ("time.sleep(1e6)", "pass", "max_load_s: 5"),
    "load-exit": ("os._exit(4)", "pass", ""),
}
"""Of each: what its load does, what its infer does when it is given anything but zeros, more of its model.yaml."""


def add_bad_models(repository: Path) -> None:
    """Write all of them."""
    for name, (load, infer, yaml) in BAD.items():
        version = folder_of(repository, name, f"runtime: python\n{SIGNATURE}{yaml}\n")
        (version / "model.py").write_text(_CODE.format(load=load, infer=infer))
