"""What the benchmarks say: CPU time of real processes, right answers, the tables' arithmetic."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks import machine, models, report
from benchmarks.report import Figures
from mesh.api.messages import ModelInferResponse
from mesh.api.tensors import encode_raw
from mesh.core.types import Dtype

BURN = """
import sys, threading, time
def burn():
    while time.process_time() < 0.6:
        pass
thread = threading.Thread(target=burn)
thread.start()
thread.join()
print(time.process_time(), flush=True)
sys.stdin.read()
"""


def test_cpu_time_counts_every_thread_of_a_process() -> None:
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        used_s = float(process.stdout.readline())
        # CPU time, not time on the clock: a busy machine does not change it. The kernel counts in steps of 10 ms.
        assert machine.cpu_s(process.pid) == pytest.approx(used_s, abs=0.1)


@pytest.mark.parametrize("case", [models.small(), models.large()], ids=lambda case: str(case.name))
def test_only_the_models_own_answer_is_right(case: models.Case) -> None:
    (rows,) = ort.InferenceSession(case.model.SerializeToString()).run(None, {"x": case.rows})
    case.check(answer(rows))
    with pytest.raises(AssertionError):
        case.check(answer(np.asarray(rows + 1, dtype=np.float32)))


def test_the_large_request_holds_600_kilobytes() -> None:
    assert models.large().rows.nbytes == 602_112


def answer(rows: models.Rows) -> bytes:
    response = ModelInferResponse(raw_output_contents=[encode_raw(rows, Dtype.FP32)])
    response.outputs.add(name="y", datatype="FP32", shape=rows.shape)
    return response.SerializeToString()


def two_peers() -> list[Figures]:
    mesh, peer = Figures("mesh"), Figures("MLServer 9.9")
    for seconds in (2.0, 1.0, 0.5):
        mesh.add(count=1000, seconds=seconds, cpu_s={"router": 0.3, "node": seconds / 2})
        peer.add(count=500, seconds=1.0, cpu_s={"server": 1.0})
    return [mesh, peer]


def test_figures_are_medians_of_the_runs_and_of_their_sums() -> None:
    mesh, _ = two_peers()
    assert (mesh.rate(), mesh.cpu()) == pytest.approx((1000, 800))
    assert mesh.parts() == "router 300, node 500"
    assert mesh.spread() == pytest.approx(0.75)
    assert mesh.busy() == pytest.approx(0.8)


def test_ratios_stand_beside_the_numbers() -> None:
    assert report.rows(two_peers()) == [
        ("mesh", "1,000", "±75%", "800 (router 300, node 500)", "80%", "2.00x", "0.40x"),
        ("MLServer 9.9", "500", "±0%", "2,000", "100%", "1.00x", "1.00x"),
    ]


def test_without_mlserver_there_are_no_ratios() -> None:
    assert [row[-2:] for row in report.rows(two_peers()[:1])] == [("-", "-")]


def test_markdown_has_a_line_per_peer() -> None:
    lines = report.markdown("a shape", two_peers()).splitlines()
    assert lines[0] == "**a shape**"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| server", "| ---", "| mesh", "| MLServer 9.9"]
