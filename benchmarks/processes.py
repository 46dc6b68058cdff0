"""Processes that a benchmark runs for itself: an etcd, and parts of the mesh."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import free_port


@contextmanager
def etcd(folder: Path) -> Iterator[str]:
    """Run an etcd of our own with its data in `folder`; give its address."""
    with etcd_process(folder) as (address, _):
        yield address


@contextmanager
def etcd_process(folder: Path) -> Iterator[tuple[str, int]]:
    """Run an etcd of our own with its data in `folder`; give its address, and its process id."""
    address, peer = f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    command = ["etcd", "--data-dir", str(folder), "--log-level", "error", "--listen-client-urls", f"http://{address}"]
    command += ["--advertise-client-urls", f"http://{address}", "--listen-peer-urls", peer]
    command += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield address, process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def mesh(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a `mesh` command; what it logs goes nowhere."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mesh.cli.main", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ready_line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for the line that `--json-ready` prints and return what it says. Raises SystemExit when none comes."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args!r} ended with {process.wait()} before it was ready")
    found: dict[str, Any] = json.loads(line)
    return found


def etcd_counts(address: str) -> dict[str, int]:
    """Return what an etcd has done since it started: transactions, keys put, keys deleted, and events to watchers."""
    names = {
        "etcd_mvcc_txn_total": "txns",
        "etcd_mvcc_put_total": "puts",
        "etcd_mvcc_delete_total": "deletes",
        "etcd_debugging_mvcc_txn_total": "txns",
        "etcd_debugging_mvcc_put_total": "puts",
        "etcd_debugging_mvcc_delete_total": "deletes",
        "etcd_debugging_mvcc_events_total": "events",
    }
    found: dict[str, int] = {}
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            name, _, value = line.partition(" ")
            if name in names:
                found[names[name]] = int(float(value))
    return found
