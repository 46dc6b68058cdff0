"""The journal with real processes that crash, exit, are killed and end in order, and the one after each of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, os, sys, threading, time
from pathlib import Path
import numpy as np
from mesh.core.errors import MeshError
from mesh.core.types import Device, DeviceKind, Dtype, ModelName, ModelVersion, TensorSpec, Version
from mesh.node.journal import Journal
from mesh.node.runtimes.base import LoadSpec, Request
from mesh.node.runtimes.python import PythonRuntime

state, models, *todo = sys.argv[1:]
journal = Journal(Path(state), "n", ("r",))
charges = [[each.held.name, each.how.value, each.text] for each in journal.open()]
print(json.dumps(charges), flush=True)

def load(name):
    specs = (TensorSpec("x", Dtype.FP32, (-1,)),)
    model = ModelVersion(ModelName(name), Version("1"), "python", "", "d", 1, inputs=specs, outputs=specs)
    path = Path(models, name, "1")
    return journal.load(PythonRuntime(), LoadSpec(model, path, Device(DeviceKind.CPU, 0, "cpu", 1, 1)))

loaded = {}
for each in todo:
    what, _, name = each.partition(":")
    try:
        if what == "load":
            loaded[name] = load(name)
        elif what == "run":
            loaded[name].run({"x": np.zeros(1, np.float32)}, Request())
        elif what == "begin":
            threading.Thread(target=loaded[name].run, args=({"x": np.zeros(1)}, Request()), daemon=True).start()
            while not loaded[name]._marks[loaded[name]._at]:
                time.sleep(0.01)
        elif what == "close":
            loaded.pop(name).close()
        elif what == "stopping":
            journal.stopping()
        elif what == "end":
            journal.close()
        elif what == "exit":
            os._exit(int(name))
        elif what == "wait":
            print("waiting", flush=True)
            time.sleep(600)
    except MeshError as error:
        print(json.dumps(error.message), flush=True)
"""

MODELS = {
    "good": "def infer(self, inputs):\n        return inputs",
    "segfaults": "def infer(self, inputs):\n        import ctypes; ctypes.string_at(0)",
    "aborts": "def infer(self, inputs):\n        import os; os.abort()",
    "exits": "def infer(self, inputs):\n        import os; os._exit(3)",
    "leaves": "def infer(self, inputs):\n        import sys; sys.exit(4)",
    "sleeps": "def infer(self, inputs):\n        import time; print('waiting', flush=True); time.sleep(600)",
    "forks": "def infer(self, inputs):\n        import ctypes, os\n"
    "        child = os.fork()\n        if not child:\n            ctypes.string_at(0)\n        os.waitpid(child, 0)\n"
    "        child = os.fork()\n        if not child:\n            os._exit(0)\n        os.waitpid(child, 0)\n"
    "        return inputs",
    "cexits": "def infer(self, inputs):\n        import ctypes; ctypes.CDLL(None)._exit(5)",
    "load_exits": "def load(self, context):\n        import os; os._exit(3)\n    def infer(self, inputs): ...",
    "load_leaves": "def load(self, context):\n        import sys; sys.exit(3)\n    def infer(self, inputs): ...",
    "load_waits": "def load(self, context):\n        import os, time\n"
    "        if not os.path.exists('go'):\n            print('waiting', flush=True); time.sleep(600)\n"
    "    def infer(self, inputs): ...",
}


class Place:
    """A state folder and models; processes one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.code = 0
        self.pid = 0
        for name, body in MODELS.items():
            path = folder / "models" / name / "1"
            path.mkdir(parents=True)
            (path / "model.py").write_text(f"class Model:\n    {body}\n")

    def begin(self, *todo: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", PROGRAM, str(self.state), str(self.folder / "models"), *todo]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder)

    def run(self, *todo: str) -> list[Any]:
        """Run a process to its end and return what it said: first whose death the end of the one before was."""
        process = self.begin(*todo)
        out, _ = process.communicate(timeout=120)
        self.code, self.pid = process.returncode, process.pid
        return [json.loads(line) for line in out.splitlines() if line != b"waiting"]

    def kill(self, *todo: str) -> list[Any]:
        """Run a process and kill it as an operator does, where it waits."""
        process = self.begin(*todo)
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert process.stdout.readline() == b"waiting\n"
        process.kill()
        process.communicate()
        self.pid = process.pid
        return list(said)

    def charged(self) -> list[Any]:
        """Return whose death the last end was, as the next process says, which ends in order."""
        (found,) = self.run("end")
        return list(found)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("segfaults", -signal.SIGSEGV, "Segmentation fault"),
        ("aborts", -signal.SIGABRT, "Aborted"),
        ("exits", 3, "it exited with code 3"),
    ],
)
def test_what_ends_the_process_in_a_run_is_charged_and_its_line_named(
    place: Place, model: str, code: int, words: str
) -> None:
    """The stack says whose code it was, though another version ran as well."""
    place.run("load:sleeps", f"load:{model}", "begin:sleeps", f"run:{model}")
    assert place.code == code
    ((name, how, text),) = place.charged()
    assert (name, how) == (model, "node")
    assert text.startswith(words)
    assert f"{model}/1/model.py" in text
    assert place.charged() == []


def test_what_ends_the_process_in_its_load_is_charged(place: Place) -> None:
    place.run("load:good", "load:load_exits")
    assert place.code == 3
    ((name, how, _),) = place.charged()
    assert (name, how) == ("load_exits", "loading")


def test_a_model_that_wants_to_exit_fails_its_own_request_or_load_alone(place: Place) -> None:
    said = place.run("load:load_leaves", "load:leaves", "run:leaves", "end")
    assert "its load raised SystemExit: 3" in said[1]
    assert said[2] == "model 'leaves' raised SystemExit: 4"
    assert place.code == 0


def test_killing_the_process_again_and_again_charges_nobody_who_runs(place: Place) -> None:
    """An operator, a supervisor or a lost machine: what happened to run is not to blame, however often."""
    for _ in range(4):
        assert place.kill("load:good", "load:sleeps", "run:sleeps") == []
    assert place.charged() == []


def test_a_load_in_which_the_process_is_killed_twice_in_a_row_is_charged(place: Place) -> None:
    assert place.kill("load:good", "load:load_waits") == []
    assert place.kill("load:good", "load:load_waits") == []
    ((name, how, _),) = place.charged()
    assert (name, how) == ("load_waits", "loading")


def test_a_load_that_went_well_between_two_kills_charges_nobody(place: Place) -> None:
    go = place.folder / "go"
    place.kill("load:load_waits")
    go.touch()
    assert place.kill("load:load_waits", "wait") == []
    go.unlink()
    assert place.kill("load:load_waits") == []
    assert place.charged() == []


def test_an_end_in_order_charges_nobody_even_by_an_exit(place: Place) -> None:
    place.run("load:sleeps", "begin:sleeps", "end", "exit:0")
    assert place.charged() == []
    place.run("load:sleeps", "begin:sleeps", "stopping", "exit:130")
    assert place.charged() == []


def test_a_child_that_a_model_forks_leaves_no_word(place: Place) -> None:
    place.run("load:forks", "run:forks", "end")
    assert place.code == 0
    assert place.kill("load:forks", "run:forks", "wait") == []
    assert place.charged() == []


def test_an_exit_in_c_is_known_where_a_supervisor_tells_the_code(place: Place) -> None:
    place.run("load:cexits", "run:cexits")
    assert place.code == 5
    (place.state / f"{place.pid}.exit").write_text("5")
    ((name, how, _),) = place.charged()
    assert (name, how) == ("cexits", "node")
    assert not list(place.state.glob("*.exit"))
    place.kill("load:sleeps", "run:sleeps")
    (place.state / f"{place.pid}.exit").write_text(str(-signal.SIGKILL))
    assert place.charged() == []


def test_a_closed_version_is_no_more_in_the_journal(place: Place) -> None:
    place.run("load:sleeps", "load:exits", "close:sleeps", "load:good", "run:exits")
    ((name, _, _),) = place.charged()
    assert name == "exits"


def test_a_second_process_of_the_same_node_leaves_the_journal_alone(place: Place) -> None:
    first = place.begin("load:sleeps", "run:sleeps")
    assert first.stdout is not None
    first.stdout.readline()
    assert first.stdout.readline() == b"waiting\n"
    assert place.run("load:segfaults", "run:segfaults") == [[]]
    first.kill()
    first.communicate()
    assert place.charged() == []


def test_without_a_folder_that_can_be_used_it_works_all_the_same(place: Place) -> None:
    place.state = place.folder / "models" / "good" / "1" / "model.py"
    assert place.run("load:good", "run:good", "close:good", "end") == [[]]
    assert place.code == 0
    assert place.state.is_file()
