"""Our messages and tritonclient's live in one process, whichever comes first (decision 0002)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = "from mesh.api.messages import ModelInferRequest as Ours"
THEIRS = "from tritonclient.grpc.service_pb2 import ModelInferRequest as Theirs"
USE = """
assert Ours is not Theirs
text = "iris"
theirs = Theirs.FromString(Ours(model_name=text, id="7").SerializeToString())
assert (theirs.model_name, theirs.id) == (text, "7")
print("both work")
"""


@pytest.mark.parametrize("imports", [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours first", "theirs first"])
def test_both_sets_of_messages_work_in_one_process(imports: tuple[str, str]) -> None:
    command = [sys.executable, "-c", "\n".join([*imports, USE])]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "both work\n", done.stderr
