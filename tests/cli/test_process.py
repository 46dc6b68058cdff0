"""A long-lived process: its ready line, its signals, its exit codes. A real router on a real registry."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

import pytest

from mesh.cli.process import sentence
from mesh.core.errors import InvalidRequest
from mesh.registry.embedded import EmbeddedRegistry

DEADLINE_S = 90.0
FREE = ("--grpc-port", "0", "--http-port", "0")


@pytest.fixture
async def registry() -> AsyncIterator[str]:
    """The address of a running registry."""
    embedded = EmbeddedRegistry("127.0.0.1", 0)
    await embedded.start()
    yield embedded.address
    await embedded.stop()


async def router(registry: str, *flags: str) -> Process:
    words = ("router", "--registry", registry, "--drain-s", "5", "--settle-s", "0.1", *flags)
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mesh.cli.main", *words, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )


async def first_line(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        return (await process.stdout.readline()).decode()


async def end(process: Process) -> tuple[int, str]:
    """Wait for the end; return code and stderr."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, err.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("loop", ["auto", "asyncio"])
async def test_a_signal_drains_and_exits_0(registry: str, number: signal.Signals, loop: str) -> None:
    process = await router(registry, *FREE, "--loop", loop)
    line = await first_line(process)
    assert line.startswith("router ")
    assert " ready on 127.0.0.1:" in line
    process.send_signal(number)
    code, err = await end(process)
    assert code == 0, err
    assert "router draining" in err


async def test_with_json_ready_the_line_is_for_programs(registry: str) -> None:
    process = await router(registry, *FREE, "--json-ready", "--log-json")
    record = json.loads(await first_line(process))
    assert record["ready"] is True
    assert (record["kind"], record["pid"]) == ("router", process.pid)
    for key in ("grpc", "http"):
        host, port = record[key].split(":")
        socket.create_connection((host, int(port)), timeout=DEADLINE_S).close()
    process.terminate()
    code, err = await end(process)
    assert code == 0
    # Which of its tasks says something first is chance.
    assert "router serving" in [json.loads(line)["text"] for line in err.splitlines()]


async def test_without_http_there_is_no_http_port(registry: str) -> None:
    process = await router(registry, "--grpc-port", "0", "--no-http", "--json-ready")
    assert json.loads(await first_line(process))["http"] == ""
    process.terminate()
    assert (await end(process))[0] == 0


async def test_a_second_signal_exits_at_once_with_130(registry: str) -> None:
    process = await router(registry, *FREE, "--settle-s", "600")
    await first_line(process)
    process.terminate()
    await said(process, "router draining")
    process.terminate()
    assert (await end(process))[0] == 130


async def said(process: Process, text: str) -> None:
    """Wait until stderr says `text`."""
    assert process.stderr is not None
    async with asyncio.timeout(DEADLINE_S):
        while text not in (line := (await process.stderr.readline()).decode()):
            assert line, f"ended without saying {text!r}"


async def test_the_end_of_stdin_is_a_signal_when_asked_for(registry: str) -> None:
    process = await router(registry, *FREE, "--exit-with-stdin")
    await first_line(process)
    assert process.stdin is not None
    process.stdin.close()
    assert (await end(process))[0] == 0


async def test_nothing_outlives_its_stdin_even_when_draining_takes_long(registry: str) -> None:
    process = await router(registry, *FREE, "--exit-with-stdin", "--settle-s", "600")
    await first_line(process)
    assert process.stdin is not None
    process.stdin.close()
    begun_s = time.monotonic()
    assert (await end(process))[0] == 1
    assert time.monotonic() - begun_s < DEADLINE_S


async def test_without_a_registry_it_waits_and_a_signal_still_exits_0() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    process = await router(f"127.0.0.1:{port}", *FREE, "--registry-timeout-s", "0.3")
    await said(process, f"127.0.0.1:{port}")
    process.terminate()
    assert (await end(process))[0] == 0


@pytest.mark.parametrize("flag", ["--grpc-port", "--http-port"])
async def test_a_taken_port_exits_1_with_one_sentence(registry: str, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        other = "--http-port" if flag == "--grpc-port" else "--grpc-port"
        process = await router(registry, flag, port, other, "0", "--log-level", "error")
        code, err = await end(process)
    assert code == 1
    assert err.startswith("error: ")
    assert f"127.0.0.1:{port}" in err
    assert err.count("\n") == 1


def test_errors_become_sentences() -> None:
    assert sentence(InvalidRequest("expected a, got b")) == "expected a, got b"
    assert sentence(OSError("the port is taken")) == "the port is taken"
    assert sentence(OSError(98, "the port is taken")) == "the port is taken"
    assert sentence(FileNotFoundError(2, "No such file", "x.pem")) == "No such file: x.pem"
    assert sentence(KeyError()) == "KeyError"
