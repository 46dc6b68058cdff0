"""`mesh explain` against a running mesh of two nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cli.running import DEADLINE_S, Up, up

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("up"), "--nodes", "2") as found:
        yield found


def mesh(running: Up, *words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "mesh.cli.main", *words, "--address", running.address],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_cold_model_is_explained_node_by_node_and_then_goes_where_it_was_said(running: Up) -> None:
    code, out, err = mesh(running, "explain", "digits", "--json")
    assert (code, err) == (0, "")
    (told,) = json.loads(out)
    assert (told["name"], told["state"]) == ("digits", "cold")
    assert {verdict["node"] for verdict in told["verdicts"]} == {"a", "b"}
    first, second = told["verdicts"]
    assert first["node"] == told["node"]
    assert first["total"] >= second["total"] > 0
    assert first["total"] == pytest.approx(sum(first["scores"].values()))
    assert mesh(running, "infer", "digits", "--input", "image=" + json.dumps([[[0.0] * 8] * 8]))[0] == 0
    (model,) = json.loads(mesh(running, "models", "digits", "--json")[1])
    assert [copy["node"] for copy in model["copies"]] == [told["node"]]
    (again,) = json.loads(mesh(running, "explain", "digits", "--json")[1])
    held = next(verdict for verdict in again["verdicts"] if verdict["node"] == told["node"])
    assert (held["refused_by"], held["copy"]) == ("copy", "ready")
    assert again["node"] != told["node"], "another copy goes elsewhere"


def test_people_get_a_table(running: Up) -> None:
    code, out, _ = mesh(running, "explain", "diabetes")
    assert code == 0
    head, columns, *rows = out.splitlines()
    assert head.startswith("diabetes version 1 is cold and needs 1.0 MiB; it would go to node ")
    assert columns.split()[:5] == ["node", "copy", "score", "why", "loss"]
    assert len(rows) == 2


def test_what_if_a_node_were_not_there(running: Up) -> None:
    assert mesh(running, "infer", "iris", "--input", "x=[[5.1, 3.5, 1.4, 0.2]]")[0] == 0
    (model,) = json.loads(mesh(running, "models", "iris", "--json")[1])
    home = model["copies"][0]["node"]
    other = {"a": "b", "b": "a"}[home]
    code, out, _ = mesh(running, "explain", "--what-if", f"remove-node={home}")
    assert code == 0
    head, _, *rows = out.splitlines()
    assert head == f"without node {home}: {len(rows)} models served by it alone, {len(rows)} of them would find room"
    assert ["iris", "1", other] in [row.split() for row in rows]
    (told,) = json.loads(mesh(running, "explain", "iris", "--what-if", f"remove-node={home}", "--json")[1])
    assert [verdict["node"] for verdict in told["verdicts"]] == [other]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["nonsense"], 1, "Request for unknown model: 'nonsense' is not found"),
        ([], 2, "expected a model, or --what-if remove-node=NODE, got neither"),
        (["iris", "--what-if", "add-node=c"], 2, "expected --what-if remove-node=NODE, got 'add-node=c'"),
        (["--what-if", "remove-node=zz"], 1, "expected a node of this mesh in remove_node, got 'zz'"),
    ],
)
def test_what_cannot_be_explained_is_one_sentence(running: Up, words: list[str], code: int, sentence: str) -> None:
    found, out, err = mesh(running, "explain", *words)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert sentence in err
