"""Clients with the defaults of their libraries stay connected: the short part of `python -m tests.conformance.soak`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.soak.cells import CELLS, run
from tests.conformance.soak.programs import PROGRAMS, Program
from tests.conformance.soak.servers import Servers, serving
from tests.fixtures.engines import need_wire
from tests.fixtures.tools import need

SHORT = [
    ("router", "8 callers"),
    ("node", "2 callers"),
    ("router", "600 KB"),
    ("router", "one of five cancels"),
    ("node", "one of five has 1 to 2 ms"),
]
SECONDS = 2.0
"""Of each run, so that all of them stay under two minutes. What cut clients off did so about once a second."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    need("etcd")
    need_wire("server counts no connections")
    with serving(tmp_path_factory.mktemp("soak")) as found:
        yield found


@pytest.fixture(scope="module", params=PROGRAMS, ids=lambda program: program.name)
def command(request: pytest.FixtureRequest) -> list[str]:
    """A program, built."""
    program: Program = request.param
    if missing := program.missing():
        pytest.skip(f"needs {missing} to build the client with {program.name}")
    return program.build()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("target", "name"), SHORT)
def test_a_client_with_default_options_stays_connected(
    servers: Servers, command: list[str], target: str, name: str
) -> None:
    (cell,) = (cell for cell in CELLS if cell.name == name)
    found = run(command, cell, servers, target, SECONDS)
    assert found.faults() == [], found
