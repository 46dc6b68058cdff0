"""A model that keeps the interpreter of its node: the node ends, says where, and the mesh goes on without it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc

from mesh_client import Client
from tests.fixtures import raw
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import start_node, start_router, until
from tests.fixtures.repositories import add_echo, add_python
from tests.fixtures.tools import need

IN_THE_NODE = "isolation: none\n"
YAML = """\
inputs: [{name: x, dtype: FP32, shape: [-1, -1]}]
outputs: [{name: y, dtype: FP32, shape: [-1, -1]}]
node_labels: {for: regex}
"""
CODE = """\
import re

class Model:
    def infer(self, inputs):
        re.match(r"(a+)+$", "a" * 60 + "b")
        return {"y": inputs["x"]}
"""


def test_a_node_whose_interpreter_is_kept_ends_and_says_where(
    new_etcd: Callable[..., EtcdServer], tmp_path: Path
) -> None:
    need("etcd")
    etcd = new_etcd()
    etcd.launch_and_wait()
    repository, log = tmp_path / "repository", tmp_path / "node.log"
    add_echo(repository)
    add_python(repository, "regex", IN_THE_NODE + YAML, CODE)
    with (
        start_node(etcd.address, "a", "--label", "for=regex", "--hang-s", "3", models=repository, log=log) as bad,
        start_node(etcd.address, "b", models=repository) as good,
        start_router(etcd.address) as router,
    ):
        for process in (bad, good, router):
            process.wait_ready()
        with Client(router.grpc, timeout_s=60) as client, raw.channel_to(router.grpc) as channel:
            until(lambda: len(client.nodes()) == 2, what="both nodes are known")

            def ask() -> None:
                with suppress(grpc.RpcError):
                    raw.infer(channel, raw.request("regex", raw.floats(1, 2, 3, 4)), timeout_s=30)

            caller = threading.Thread(target=ask)
            caller.start()
            assert bad.wait() == -signal.SIGPROF
            caller.join()
            assert "line 5 in infer" in log.read_text()
            until(lambda: [each.id for each in client.nodes()] == ["b"], what="its lease is gone")
            raw.infer(channel, raw.request("echo", raw.floats(1, 2, 3, 4)))
