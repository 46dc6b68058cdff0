"""nghttp and h2load, the clients of nghttp2: every header of a single call, and thousands of streams at a time."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import raw
from tests.fixtures.engines import need_wire
from tests.fixtures.mesh import Process, mesh_up
from tests.fixtures.repositories import add_patient
from tests.fixtures.tools import need

GRPC = {"content-type": "application/grpc", "te": "trailers"}
CALLS = 20_000


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    repository = tmp_path_factory.mktemp("models")
    add_patient(repository)
    with mesh_up(repository) as process:
        yield process


@pytest.fixture
def body(tmp_path: Path) -> Path:
    """The body of a ModelInfer for iris, as it goes over the wire: a flag, the length, the message."""
    return written(tmp_path / "iris", raw.request("iris").SerializeToString())


def written(path: Path, message: bytes) -> Path:
    path.write_bytes(struct.pack(">BI", 0, len(message)) + message)
    return path


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, timeout=600, check=False)
    output = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode == 0, output
    return output


def answer(mesh: Process, method: str, body: Path, *options: str, headers: dict[str, str] | None = None) -> list[str]:
    """Call a method with nghttp; return what came for it in order: headers, ``DATA``, and ``END`` at its end."""
    given = [
        part for name, value in (GRPC if headers is None else headers).items() for part in ("-H", f"{name}: {value}")
    ]
    command = (need("nghttp"), "--verbose", "--null-out", *options, *given, f"--data={body}")
    output = run(*command, f"http://{mesh.grpc}/inference.GRPCInferenceService/{method}")
    received = output.split("recv ")[1:]
    found = []
    for part in received:
        # nghttp calls a header sensitive that came as a literal which may never be indexed.
        if header := re.match(r"\(stream_id=\d+(?:, sensitive)?\) (.*)", part):
            found.append(header[1].strip())
        elif re.match(r"DATA frame <length=[1-9]", part) and found[-1] != "DATA":
            found.append("DATA")
        if re.match(r"(DATA|HEADERS) frame", part) and "; END_STREAM" in part:
            found.append("END")
    return found


OPTIONS = {
    "as it is": (),
    "with its headers in CONTINUATION frames": ("--continuation",),
    "with padded frames": ("--padding=200",),
    "through a window of 15 bytes": ("--window-bits=4",),
    "without a header table": ("--header-table-size=0",),
    "with a large header table": ("--header-table-size=65536",),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_call_is_answered_with_headers_a_message_and_trailers(
    mesh: Process, body: Path, options: tuple[str, ...]
) -> None:
    if "--padding=200" in options:
        need_wire("server resets a stream for a padded DATA frame")
    found = answer(mesh, "ModelInfer", body, *options)
    middle = found.index("DATA")
    assert found[0] == ":status: 200"
    assert "content-type: application/grpc" in found[:middle]
    assert not any(line.startswith("grpc-status") for line in found[:middle])
    assert "grpc-status: 0" in found[middle:]
    assert found[-1] == "END"
    # Between them is nothing: the body ended before the trailers began.
    assert found.count("DATA") == found.count("END") == 1


def test_a_failed_call_is_answered_with_one_block_of_headers(mesh: Process, tmp_path: Path) -> None:
    body = written(tmp_path / "unknown", raw.request("iris é 100%").SerializeToString())
    found = answer(mesh, "ModelInfer", body)
    assert found[0] == ":status: 200"
    assert "content-type: application/grpc" in found
    assert "grpc-status: 5" in found
    assert "grpc-message: Request for unknown model: 'iris %C3%A9 100%25' is not found" in found
    assert "DATA" not in found
    assert found[-1] == "END"


def test_an_unknown_method_is_unimplemented(mesh: Process, body: Path) -> None:
    found = answer(mesh, "NoSuchMethod", body)
    assert ":status: 200" in found
    assert "grpc-status: 12" in found
    assert found[-1] == "END"


def test_a_body_that_ends_inside_a_message_is_a_failed_call(mesh: Process, body: Path) -> None:
    need_wire("server waits for the rest, which cannot come")
    body.write_bytes(body.read_bytes()[:-1])
    statuses = [line for line in answer(mesh, "ModelInfer", body) if line.startswith("grpc-status")]
    assert len(statuses) == 1
    assert statuses != ["grpc-status: 0"]


def test_what_is_no_grpc_is_told_so_in_http(mesh: Process, body: Path) -> None:
    need_wire("server resets the stream")
    found = answer(mesh, "ModelInfer", body, headers={"content-type": "application/json"})
    assert found[0] == ":status: 415"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("streams", [200, 1000])
def test_thousands_of_streams_at_a_time_are_all_answered_in_full(mesh: Process, body: Path, streams: int) -> None:
    h2load = need("h2load")
    if streams == 1000:
        need_wire("server refuses calls beyond 1000 to 3000 that it has not begun")
    with raw.channel_to(mesh.grpc) as channel:
        length = 5 + len(raw.infer_bytes(channel, raw.request("iris").SerializeToString()))
    headers = [part for name, value in GRPC.items() for part in ("-H", f"{name}: {value}")]
    shape = ("--requests", str(CALLS), "--clients", "4", "--max-concurrent-streams", str(streams))
    url = f"http://{mesh.grpc}/inference.GRPCInferenceService/ModelInfer"
    output = run(h2load, *shape, *headers, f"--data={body}", url)
    assert f"{CALLS} succeeded, 0 failed, 0 errored, 0 timeout" in output
    assert f"status codes: {CALLS} 2xx" in output
    # A failed call has status 200 too, but no body: every answer is as long as the first.
    assert re.search(r"\((\d+)\) data", output)[1] == str(CALLS * length)  # type: ignore[index] # None fails it too
