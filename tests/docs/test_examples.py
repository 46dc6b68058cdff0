"""The programs of examples/, run as a reader would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.fixtures.mesh import MODELS, ROOT, mesh_up

PRINTED = {
    "rows.py": "145 of 150 rows as their label says\n",
    "many_calls.py": "197 digits read rightly, 0 calls failed\n",
    "story.py": "the router ",
    "loud_or_quiet.py": "frame 30: begin\nframe 40: end\n",
    "pipeline.py": "216 of 216 pairs of titles are judged rightly\n",
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with mesh_up(MODELS / "demo") as mesh:
        yield mesh.grpc


def test_every_example_is_run_and_listed() -> None:
    programs = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert programs == set(PRINTED)
    page = (ROOT / "examples/README.md").read_text()
    assert [name for name in programs if f"]({name})" not in page] == []


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_should(name: str, address: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), address],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert PRINTED[name] in done.stdout
