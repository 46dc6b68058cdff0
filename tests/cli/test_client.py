"""`mesh infer`, `mesh models` and `mesh nodes` against a running mesh."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import DEADLINE_S, Up, up

pytestmark = pytest.mark.timeout(600)

ROW = "[[5.1, 3.5, 1.4, 0.2]]"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One mesh for all tests here: they only ask."""
    with up(tmp_path_factory.mktemp("up"), "--nodes", "1") as found:
        yield found


def mesh(running: Up, *words: str) -> tuple[int, str, str]:
    """Run `mesh` with `words` against the running mesh; return code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "mesh.cli.main", *words, "--address", running.address],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    return done.returncode, done.stdout, done.stderr


def test_infer_prints_a_table(running: Up) -> None:
    code, out, err = mesh(running, "infer", "iris", "--input", f"x={ROW}")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["output", "type", "shape", "values"]
    assert lines[1].split() == ["label", "INT64", "[1]", "[0]"]
    assert lines[2].startswith("probabilities  FP32   [1, 3]  [[0.99")
    assert lines[3].startswith("iris version 1, ")


def test_infer_prints_json_of_the_outputs_asked_for(running: Up) -> None:
    code, out, _ = mesh(running, "infer", "iris", "--input", f"x={ROW}", "--json", "--output", "label")
    assert code == 0
    assert json.loads(out) == {
        "model_name": "iris",
        "model_version": "1",
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [1], "data": [0]}],
    }


def test_infer_takes_a_numpy_file_and_texts(running: Up, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[6.7, 3.0, 5.2, 2.3], [5.1, 3.5, 1.4, 0.2]], np.float32))
    code, out, _ = mesh(running, "infer", "iris", "--input", f"x=@{tmp_path}/x.npy", "--json")
    assert code == 0
    assert json.loads(out)["outputs"][0]["data"] == [2, 0]
    titles = ("--input", 'left=[["red car"]]', "--input", 'right=[["red car"]]')
    code, out, _ = mesh(running, "infer", "text_features", *titles, "--json")
    assert code == 0
    assert json.loads(out)["outputs"][0]["data"][0][0] == 1.0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["infer", "nonsense", "--input", "x=[1]"], "Request for unknown model: 'nonsense' is not found"),
        (["infer", "iris", "--input", f"y={ROW}"], "model 'iris' has no input 'y'; it has x"),
        (["infer", "iris", "--input", "x=[[1, 2]]"], "Expected [-1,4], got [1,2]"),
        (["infer", "iris", "--input", 'x=[["a"]]'], "input 'x' wants FP32: expected numbers in JSON"),
        (["infer", "iris", "--input", "x"], "--input must be name=value, got 'x'"),
        (["infer", "iris", "--version", "7", "--input", f"x={ROW}"], "version 7 is not found"),
        (["infer", "iris", "--output", "nothing", "--input", f"x={ROW}"], "unexpected inference output 'nothing'"),
        (["infer", "iris"], "missing required input"),
        (["models", "nonsense"], "nonsense"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_1(running: Up, words: list[str], sentence: str) -> None:
    code, out, err = mesh(running, *words)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_responses_are_printed_as_they_are_made_of_any_model(running: Up) -> None:
    words = ["--input", 'PROMPT=[["the mesh "]]', "--param", "max_tokens=20"]
    code, out, _ = mesh(running, "infer", "prose", "--stream", *words)
    assert (code, len(out)) == (0, 21)
    code, out, _ = mesh(running, "infer", "prose", "--stream", "--json", *words)
    assert (code, len(out.splitlines())) == (0, 20)
    assert all(json.loads(line).keys() == {"TEXT"} for line in out.splitlines())
    code, out, _ = mesh(running, "infer", "iris", "--stream", "--input", "x=[[5.1, 3.5, 1.4, 0.2]]")
    assert (code, json.loads(out)["label"]) == (0, [0])


def test_models_and_their_copies_are_listed(running: Up) -> None:
    assert mesh(running, "infer", "digits", "--input", "image=" + json.dumps([[[0.0] * 8] * 8]))[0] == 0
    code, out, _ = mesh(running, "models")
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines()[1:]}
    assert set(rows) == {"brittle", "detector", "diabetes", "digits", "iris", "prose", "text_features", "text_score"}
    assert rows["digits"][1:4] == ["1", "onnx", "ready"]
    code, out, _ = mesh(running, "models", "digits")
    assert code == 0
    assert out.splitlines()[-1].split()[:3] == ["a", "1", "ready"]
    code, out, _ = mesh(running, "models", "digits", "--json")
    (record,) = json.loads(out)
    assert (record["name"], record["state"]) == ("digits", "ready")
    assert record["copies"][0]["node"] == "a"
    assert record["copies"][0]["bytes"] > 0


def test_nodes_are_listed(running: Up) -> None:
    code, out, _ = mesh(running, "nodes")
    assert code == 0
    assert out.splitlines()[1].split()[:3] == ["a", running.ready["nodes"][0]["grpc"], "serving"]
    code, out, _ = mesh(running, "nodes", "--json")
    (record,) = json.loads(out)
    assert record["id"] == "a"
    assert record["devices"][0]["total_bytes"] >= record["devices"][0]["free_bytes"] > 0


def test_nobody_at_the_address_is_one_sentence(running: Up) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mesh.cli.main", "nodes", "--address", "127.0.0.1:1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "127.0.0.1:1" in done.stderr
    assert done.stderr.count("\n") == 1
