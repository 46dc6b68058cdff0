"""Whatever etcd answers, no process that serves ends: it goes on with what it has, says why, and catches up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mesh_client import Client, Unavailable
from tests.fixtures.calls import Calls
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.etcd_full import FULL_BYTES, fill, make_room
from tests.fixtures.etcd_users import PASSWORD, USER, set_password, turn_on
from tests.fixtures.mesh import MODELS, Process, start_node, start_router, until
from tests.fixtures.tools import need

DIGIT = {"image": np.zeros((1, 8, 8), np.float32)}


@pytest.fixture
def members(new_etcd: Callable[..., EtcdServer]) -> list[EtcdServer]:
    """Three members of one etcd, running."""
    need("etcd")
    made = [new_etcd() for _ in range(3)]
    for each in made:
        each.join(made)
    for each in made:
        each.launch()
    until(lambda: all(each.healthy() for each in made), what="the three members are healthy")
    return made


def endpoints(members: list[EtcdServer]) -> str:
    return ",".join(each.address for each in members)


@contextmanager
def mesh(registry: str, *flags: str, logs: Path) -> Iterator[tuple[Process, Process]]:
    """Start a router and a node, and wait until they are ready; both are told to stop at the end, and do."""
    with (
        start_router(registry, *flags, log=logs / "router.log") as router,
        start_node(registry, "a", *flags, "--http-port", "0", log=logs / "node.log") as node,
    ):
        yield router.wait_ready(), node.wait_ready()
        assert router.running
        assert node.running


def said(log: Path, text: str) -> int:
    """Return how many lines of a log hold `text`."""
    return sum(text in line for line in log.read_text().splitlines()) if log.exists() else 0


def until_said(log: Path, text: str) -> None:
    """Return when a line of a log holds `text`."""
    until(lambda: said(log, text), what=f"{log.name} says: {text}")


def test_authentication_and_a_lost_quorum_end_nothing(members: list[EtcdServer], tmp_path: Path) -> None:
    """A token cannot be made without a quorum: whoever wants one waits, and calls on what is loaded go on."""
    turn_on(members[0])
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    flags = ("--registry-user", USER, "--registry-password-file", str(file), "--registry-timeout-s", "2")
    with mesh(endpoints(members), *flags, logs=tmp_path) as (router, _), Calls(router.grpc, "iris") as calls:
        calls.more(5)
        for each in members[1:]:
            each.kill()
        # Well past the node's lease of 5 s and several tries to authenticate.
        until_said(tmp_path / "router.log", "the watch on the registry was lost")
        end_s = time.monotonic() + 12
        while time.monotonic() < end_s:
            calls.more(20)
        for each in members[1:]:
            each.launch()
        until(lambda: all(each.healthy() for each in members), what="the members are back")
        until_said(tmp_path / "router.log", "the registry is followed again")
        with Client(router.grpc) as client:
            assert client.infer("digits", DIGIT, timeout_s=60)
        assert not calls.failed


def test_a_password_that_changes_ends_nothing(etcd: EtcdServer, tmp_path: Path) -> None:
    turn_on(etcd)
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    flags = ("--registry-user", USER, "--registry-password-file", str(file), "--registry-timeout-s", "2")
    with mesh(etcd.address, *flags, logs=tmp_path) as (router, _), Calls(router.grpc, "iris") as calls:
        calls.more(5)
        set_password(etcd, "another")
        etcd.kill()
        etcd.launch_and_wait()
        logs = [tmp_path / "router.log", tmp_path / "node.log"]
        for log in logs:
            until_said(log, "etcd did not take user")
        calls.more(50)
        file.write_text("another")
        for log in logs:
            until_said(log, "the registry is followed again")
        with Client(router.grpc) as client:
            assert client.infer("digits", DIGIT, timeout_s=60)
        assert not calls.failed


def test_a_cold_model_waits_for_room_in_etcd_and_callers_are_told_why(
    new_etcd: Callable[..., EtcdServer], tmp_path: Path
) -> None:
    need("etcd")
    server = new_etcd(quota_bytes=FULL_BYTES)
    server.launch_and_wait()
    with (
        mesh(server.address, logs=tmp_path) as (router, _),
        Calls(router.grpc, "iris") as calls,
        Client(router.grpc) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        calls.more(5)
        fill(server.address)
        with pytest.raises(
            Unavailable, match=r"was not placed in time: etcd cannot do this now: .*database space"
        ) as told:
            client.infer("digits", DIGIT, timeout_s=3)
        assert told.value.reason == "REGISTRY_UNAVAILABLE"
        waiting = pool.submit(client.infer, "digits", DIGIT, timeout_s=60)
        # Longer than the node's lease, which has to be renewed meanwhile.
        end_s = time.monotonic() + 7
        while time.monotonic() < end_s:
            calls.more(20)
        make_room(server)
        assert waiting.result(60)
        assert [node.id for node in client.nodes()] == ["a"]
        assert not calls.failed


def test_processes_that_start_without_a_quorum_wait_for_it(members: list[EtcdServer], tmp_path: Path) -> None:
    for each in members[1:]:
        each.kill()
    registry, patience = endpoints(members), ("--registry-timeout-s", "1")
    logs = [tmp_path / "router.log", tmp_path / "node.log"]
    with (
        start_router(registry, *patience, log=logs[0]) as router,
        start_node(registry, "a", *patience, log=logs[1]) as node,
    ):
        for log in logs:
            until_said(log, "waiting for the registry")
        # etcd itself answers after 7 s, and in another way than a client's own deadline does.
        end_s = time.monotonic() + 9
        while time.monotonic() < end_s:
            assert router.running
            assert node.running
            time.sleep(0.1)
        for each in members[1:]:
            each.launch()
        assert node.wait_ready()
        assert router.wait_ready()


def test_a_wrong_password_at_the_start_is_said_and_the_right_one_taken(etcd: EtcdServer, tmp_path: Path) -> None:
    turn_on(etcd)
    file = tmp_path / "password"
    file.write_text("wrong")
    flags = ("--registry-user", USER, "--registry-password-file", str(file))
    with (
        start_router(etcd.address, *flags, log=tmp_path / "router.log") as router,
        start_node(etcd.address, "a", *flags, log=tmp_path / "node.log") as node,
    ):
        for name in ("router.log", "node.log"):
            until_said(tmp_path / name, "etcd did not take user 'mesh'")
        assert router.running
        assert node.running
        file.write_text(PASSWORD)
        assert router.wait_ready()
        assert node.wait_ready()
    assert said(tmp_path / "router.log", "etcd did not take user 'mesh'") == 1


def test_mesh_up_with_a_wrong_password_ends_with_a_sentence(etcd: EtcdServer, tmp_path: Path) -> None:
    """A command says what is wrong and ends: only what serves waits."""
    turn_on(etcd)
    file = tmp_path / "password"
    file.write_text("wrong")
    flags = ("--registry", etcd.address, "--registry-user", USER, "--registry-password-file", str(file))
    with Process("up", "--models", str(MODELS / "demo"), *flags, log=tmp_path / "up.log") as up:
        assert up.wait() == 1
    assert said(tmp_path / "up.log", "error: etcd did not take user 'mesh'") == 1
