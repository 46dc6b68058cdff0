"""Tests that run side by side never choose the same port."""

from __future__ import annotations

import random
import subprocess
import sys

from tests.fixtures.mesh import ROOT, free_port

ASK = (
    "import random; random.seed(1); from tests.fixtures.mesh import free_port; print(*(free_port() for _ in range(50)))"
)


def test_processes_with_one_seed_are_given_different_ports() -> None:
    """pytest-randomly seeds `random` alike in all processes of a run before each test."""
    random.seed(1)
    mine = {free_port() for _ in range(50)}
    done = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, capture_output=True, text=True, check=True)
    theirs = {int(each) for each in done.stdout.split()}
    assert len(mine | theirs) == 100
