"""h2spec, which knows RFC 9113 and RFC 7541 by heart, against the ports of a router and of a node.

What it sends are GET requests without a content-type: no gRPC calls, yet HTTP/2 that must be answered or refused as
the RFCs say, by an answer with a body, because some cases watch its DATA frames.
"""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.engines import need_wire
from tests.fixtures.mesh import MODELS, Process, mesh_up
from tests.fixtures.tools import need

ANSWER_S = 5
"""How long h2spec waits for each frame before it says that none came; it waits in full only where a case fails."""
CASES = {"generic": 44, "http2": 95, "hpack": 7}
"""How many cases the sections of h2spec 2.2.1 have: a run that stopped early is no pass."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Process]:
    need("h2spec")
    need_wire("server leaves most malformed requests unanswered: 88 of 146 cases fail")
    with mesh_up(MODELS / "demo") as process:
        yield process


def judged(address: str, section: str, report: Path) -> dict[str, str]:
    """Run a section of h2spec against `address`; return its cases, each with what was wrong, empty if nothing was."""
    host, _, port = address.rpartition(":")
    target = ("--host", host, "--port", port, "--path", "/inference.GRPCInferenceService/ServerLive")
    done = subprocess.run(
        [need("h2spec"), section, *target, "--strict", "--timeout", str(ANSWER_S), "--junit-report", str(report)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for group in ET.parse(report).getroot().iter("testsuite"):
        for index, case in enumerate(group.iter("testcase"), start=1):
            name = f"{case.get('package')}/{index} {case.get('classname')}"
            found[name] = "; ".join(_wrong(part) for part in case)
    return found


def _wrong(part: ET.Element) -> str:
    """Return what a child of a testcase says: a failure, an error or a skip."""
    lines = [line.strip() for line in (part.text or "").splitlines() if line.strip()]
    return f"{part.tag}: expected {' or '.join(lines[:-1])}; got {lines[-1]}" if lines else part.tag


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("section", CASES)
@pytest.mark.parametrize("process", ["router", "node"])
def test_h2spec_finds_nothing_wrong(mesh: Process, process: str, section: str, tmp_path: Path) -> None:
    address = mesh.grpc if process == "router" else mesh.ready["nodes"][0]["grpc"]
    cases = judged(address, section, tmp_path / "report.xml")
    assert len(cases) >= CASES[section]
    # A case is skipped where a server leaves it nothing to look at: no limit of streams, no body in the answer.
    assert {name: wrong for name, wrong in cases.items() if wrong} == {}
