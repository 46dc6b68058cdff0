"""`mesh bench`: runs the benchmarks of a source checkout; they are not part of the installed package."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

import mesh
from mesh.cli.process import fail


def bench(context: typer.Context) -> None:
    """Run the benchmarks of the checkout; further arguments go to them."""
    folder = Path(mesh.__file__).parent.parent / "benchmarks"
    entry = folder / "__main__.py"
    if not entry.is_file():
        fail(f"there are no benchmarks at {folder}: run `mesh bench` from a source checkout that has them")
    os.execv(sys.executable, [sys.executable, str(folder), *context.args])  # noqa: S606 - our own files, no shell
