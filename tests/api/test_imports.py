"""Our messages beside those of other clients: protobuf package ``inference`` is defined twice in one process."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

USES = {
    "mesh_client": "from mesh_client._values import request_of; import numpy\n"
    "one = request_of('m', {'x': numpy.zeros(1)})\nassert type(one).FromString(one.SerializeToString()) == one\n",
    "mesh.api.messages": "from mesh.api.messages import ModelInferRequest as Ours\n"
    "assert Ours.FromString(Ours(model_name='m', id='7').SerializeToString()).id == '7'\n",
    "tritonclient.grpc": "from tritonclient.grpc.service_pb2 import ModelInferRequest as Theirs\n"
    "assert Theirs.FromString(Theirs(model_name='m', id='7').SerializeToString()).id == '7'\n",
}


@pytest.mark.parametrize("order", list(itertools.permutations(USES)), ids="-".join)
def test_every_order_of_importing_works(order: tuple[str, ...]) -> None:
    program = "".join(f"import {name}\n" for name in order) + "".join(USES[name] for name in order)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
