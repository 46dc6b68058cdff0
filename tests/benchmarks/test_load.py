"""Load that counts only right answers, against real servers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks import load, models
from benchmarks.calls import Job
from benchmarks.load import INFER, STREAM, LoadFailed
from benchmarks.peers.grpcio import Echo

needs_h2load = pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not on the PATH")

REPORT = """
finished in {took}, 2040.63 req/s, 133.50KB/s
requests: 100 total, 100 started, 100 done, {succeeded} succeeded, 0 failed, 0 errored, 0 timeout
status codes: {succeeded} 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 6.54KB (6699) total, 1.02KB (1048) headers (space savings 94.24%), 1.46KB ({data}) data
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Echo]:
    peer = Echo()
    try:
        peer.start(tmp_path_factory.mktemp("echo"), [models.small()])
        yield peer
    finally:
        peer.stop()


class Refusing(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in the stubs only, not when it runs
    """Fails every single call, as a server that is too busy does."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        def refuse(message: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too busy")

        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads, handlers=[Refusing()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(0).wait()


def job(address: str, method: str, answer_bytes: int, **changes: Any) -> Job:
    asked: dict[str, Any] = {
        "body": models.small().request(),
        "count": 100,
        "connections": 2,
        "streams": 3,
        "window": 4,
        "streaming": method == STREAM,
        "unique": False,
    }
    return Job(address=address, method=method, answer_bytes=answer_bytes, **{**asked, **changes})


@pytest.mark.parametrize("method", [INFER, STREAM])
@pytest.mark.parametrize("unique", [False, True])
def test_a_run_in_which_every_answer_is_right_takes_some_time(
    echo: Echo, method: str, tmp_path: Path, unique: bool
) -> None:
    asked = job(echo.address, method, echo.answer_bytes[method, "mlp"], unique=unique)
    assert load.send(asked, tmp_path).seconds > 0


@pytest.mark.parametrize("count", [1, 5, 23, 24, 25])
@pytest.mark.parametrize("method", [INFER, STREAM])
def test_fewer_messages_than_there_is_room_for_end_well(echo: Echo, method: str, tmp_path: Path, count: int) -> None:
    asked = job(echo.address, method, echo.answer_bytes[method, "mlp"], count=count)
    assert load.send(asked, tmp_path, own=True).seconds > 0


@pytest.mark.parametrize("body_bytes", [16_000, 16_379, 16_380, 65_530, 602_112])
def test_our_client_keeps_to_the_servers_windows_and_frames(echo: Echo, tmp_path: Path, body_bytes: int) -> None:
    asked = job(echo.address, INFER, body_bytes, body=bytes(body_bytes), count=30)
    assert load.send(asked, tmp_path, own=True).latency_s > 0


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("method", [INFER, STREAM])
def test_an_answer_of_another_size_fails_the_run(echo: Echo, method: str, tmp_path: Path, own: bool) -> None:
    with pytest.raises(LoadFailed, match="expected"):
        load.send(job(echo.address, method, echo.answer_bytes[method, "mlp"] + 1), tmp_path, own=own)


@pytest.mark.parametrize("has_h2load", [pytest.param(True, marks=needs_h2load), False])
def test_failed_calls_fail_the_run(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_h2load: bool
) -> None:
    if not has_h2load:
        monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadFailed):
        load.send(job(refusing, INFER, 100), tmp_path)


def test_our_client_says_which_status_a_failed_call_had(refusing: str, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"'grpc-status': '8', 'grpc-message': 'too busy'"):
        load.send(job(refusing, INFER, 100), tmp_path, own=True)


def test_single_calls_go_without_h2load_too(echo: Echo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load.send(job(echo.address, INFER, echo.answer_bytes[INFER, "mlp"]), tmp_path).seconds > 0


@pytest.mark.parametrize(("took", "seconds"), [("900us", 0.0009), ("48.1ms", 0.0481), ("3.02s", 3.02), ("2.0m", 120)])
def test_h2loads_time_is_read_in_any_unit(took: str, seconds: float) -> None:
    report = REPORT.format(took=took, succeeded=100, data=1500)
    assert load.parse_h2load(report, job("", INFER, 10)) == pytest.approx(seconds)


@pytest.mark.parametrize(("succeeded", "data"), [(99, 1500), (100, 1485), (100, 0)])
def test_h2loads_report_of_lost_answers_fails_the_run(succeeded: int, data: int) -> None:
    report = REPORT.format(took="1s", succeeded=succeeded, data=data)
    with pytest.raises(LoadFailed, match=f"got {succeeded} and {data}"):
        load.parse_h2load(report, job("", INFER, 10))
