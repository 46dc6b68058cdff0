"""What the benchmarks say: CPU time of real processes, right answers, the tables' arithmetic."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks import machine, models, report
from benchmarks.figures import Figures
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
        # CPU time, not time on the clock: a busy machine does not change it.
        assert machine.cpu_s(process.pid) == pytest.approx(used_s, abs=0.05)


def test_memory_of_a_process_has_a_peak_that_can_be_forgotten() -> None:
    grow = "x = bytearray(b'x') * 2**26; del x; print('grown', flush=True); import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", grow], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert machine.memory_bytes(process.pid, "VmHWM") > machine.memory_bytes(process.pid, "VmRSS") + 2**25
        machine.forget_peak(process.pid)
        assert machine.memory_bytes(process.pid, "VmHWM") < 2**26


def test_a_running_process_moves_to_a_core_with_its_threads() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        machine.pin(process.pid, machine.LOAD_CORE)
        assert os.sched_getaffinity(process.pid) == {machine.LOAD_CORE}
        process.kill()


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


def two_peers() -> dict[str, Figures]:
    mesh, peer = Figures("mesh"), Figures("MLServer 9.9")
    for seconds in (2.0, 1.0, 0.5):
        mesh.add(count=1000, seconds=seconds, cpu_s={"router": 0.3, "node": seconds / 2})
        peer.add(count=500, seconds=1.0, cpu_s={"server": 1.0})
    return {"mesh": mesh, "mlserver": peer}


def test_figures_are_medians_of_the_runs_and_of_their_sums() -> None:
    mesh = two_peers()["mesh"]
    assert (mesh.rate(), mesh.cpu()) == pytest.approx((1000, 800))
    assert mesh.parts() == "router 300, node 500"
    assert mesh.spread() == pytest.approx(0.75)
    assert mesh.busy() == pytest.approx(0.8)


def test_ratios_stand_beside_the_numbers() -> None:
    header, rows = report.table(two_peers(), "mlserver", "node")
    assert header[-2:] == ("rate to MLServer 9.9", "CPU to MLServer 9.9")
    assert rows == [
        ("mesh", "1,000", "±75%", "800 (router 300, node 500)", "80%", "2.00x", "0.40x"),
        ("MLServer 9.9", "500", "±0%", "2,000", "100%", "1.00x", "1.00x"),
    ]


def test_without_the_base_there_are_no_ratios() -> None:
    assert [row[-2:] for row in report.rows(two_peers(), "envoy")] == [("-", "-"), ("-", "-")]


def test_latency_is_added_to_the_direct_ways() -> None:
    found = two_peers()
    found["mesh"].latencies_us, found["mlserver"].latencies_us = [90.0, 100.0, 300.0], [40.0]
    header, rows = report.table(found, "mlserver", "mlserver")
    assert header[-2:] == report.LATENCY
    assert [row[-2:] for row in rows] == [("100", "60"), ("40", "-")]


def test_memory_is_the_most_that_any_run_took() -> None:
    found = two_peers()
    found["mesh"].memory_kb, found["mlserver"].memory_kb = [200.0, 20.0], [50.0]
    header, rows = report.table(found, "mlserver", "node")
    assert header[-1:] == report.MEMORY
    assert [row[-1] for row in rows] == ["200", "50"]


def test_markdown_has_a_line_per_peer() -> None:
    lines = report.markdown("a shape", *report.table(two_peers(), "mlserver", "node")).splitlines()
    assert lines[0] == "**a shape**"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| server", "| ---", "| mesh", "| MLServer 9.9"]
