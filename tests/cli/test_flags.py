"""Flags: every field of the configurations has one, and wrong values are one sentence."""

from __future__ import annotations

import dataclasses
import inspect
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import mesh
from mesh.cli import flags
from mesh.cli.node import node
from mesh.cli.router import router
from mesh.node.config import NodeConfig
from mesh.registry.config import RegistryConfig
from mesh.router.config import RouterConfig
from mesh.wire.transport import TlsConfig

RENAMED = {
    "repositories": {"models"},
    "labels": {"label"},
    "state_dir": {"state_dir"},  # its default is a folder of the user's
    "tls": {"tls_cert", "tls_key", "tls_ca"},
    "node_tls": {"node_tls_cert", "node_tls_key", "node_tls_ca"},
    "limits": {"max_message_bytes"},
    "registry": {
        "registry",
        "registry_ca",
        "registry_cert",
        "registry_key",
        "registry_user",
        "registry_password_file",
        "registry_timeout_s",
    },
}


def run(*words: str) -> tuple[int, str, str]:
    """Run `mesh` with `words`; return code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "mesh.cli.main", *words], capture_output=True, text=True, check=False, timeout=100
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("command", "config"), [(router, RouterConfig), (node, NodeConfig)])
def test_every_field_of_the_configuration_has_its_flag(command: Callable[..., None], config: Any) -> None:
    parameters = set(inspect.signature(command).parameters)
    for field in dataclasses.fields(config):
        assert RENAMED.get(field.name, {field.name}) <= parameters, field.name


def test_every_field_of_the_registry_has_its_flag() -> None:
    names = {field.name for field in dataclasses.fields(RegistryConfig)}
    assert names == {"endpoints", "tls", "user", "password", "password_file", "timeout_s"}


def test_defaults_of_the_flags_are_those_of_the_configuration() -> None:
    for command, config in ((router, RouterConfig()), (node, NodeConfig(id="", repositories=()))):
        parameters = inspect.signature(command).parameters
        for field in dataclasses.fields(config):
            if field.name in parameters and field.name not in RENAMED and field.name != "id":
                assert parameters[field.name].default == getattr(config, field.name), field.name


@pytest.mark.parametrize(
    ("text", "expected", "secure"),
    [
        ("127.0.0.1:2379", ("127.0.0.1:2379",), False),
        ("etcd://a:1, http://b:2/", ("a:1", "b:2"), False),
        ("https://a:1,b:2", ("a:1", "b:2"), True),
        ("[::1]:2379", ("[::1]:2379",), False),
    ],
)
def test_registry_endpoints_take_a_scheme_before_them(text: str, expected: tuple[str, ...], secure: bool) -> None:
    assert flags.split_endpoints(text) == (expected, secure)


@pytest.mark.parametrize("text", ["", "host", "host:", "host:port", ":1", "a:1,,b:2", "a:0", "a:65536", "ftp://a:1"])
def test_a_registry_address_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected"):
        flags.split_endpoints(text)


def test_the_password_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("from the file\n")
    env = {"MESH_REGISTRY_PASSWORD": "from the environment"}
    by_env = flags.registry_config("a:1", user="mesh", environment=env)
    assert by_env.password == "from the environment"
    by_file = flags.registry_config("a:1", user="mesh", password_file=file, environment=env)
    assert (by_file.password_file, by_file.password) == (str(file), "")
    with pytest.raises(typer.BadParameter, match="user 'mesh' needs a password: set MESH_REGISTRY_PASSWORD"):
        flags.registry_config("a:1", user="mesh", environment={})
    assert flags.registry_config("a:1", environment=env).password == ""


def test_a_password_file_that_cannot_be_used_is_refused_at_once(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe")
    for file, why in ((tmp_path / "none", "found none at"), (empty, "is empty"), (binary, "cannot read")):
        with pytest.raises(typer.BadParameter, match=why):
            flags.registry_config("a:1", user="mesh", password_file=file, environment={})


def test_tls_of_the_registry_is_on_with_https_or_any_file(tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    pem.touch()
    assert flags.registry_config("a:1", environment={}).tls is None
    assert flags.registry_config("https://a:1", environment={}).tls == TlsConfig()
    assert flags.registry_config("a:1", ca=pem, environment={}).tls == TlsConfig(ca=str(pem))
    with pytest.raises(typer.BadParameter, match="go together"):
        flags.registry_config("a:1", cert=pem, environment={})
    with pytest.raises(typer.BadParameter, match="expected a file, found none"):
        flags.registry_config("a:1", ca=tmp_path / "absent", environment={})


def test_tls_of_the_port_needs_a_certificate_and_its_key(tmp_path: Path) -> None:
    pem = tmp_path / "x.pem"
    pem.touch()
    assert flags.server_tls(None, None, None) is None
    assert flags.server_tls(pem, pem, pem) == TlsConfig(str(pem), str(pem), str(pem))
    with pytest.raises(typer.BadParameter, match="go together"):
        flags.server_tls(pem, None, None)
    with pytest.raises(typer.BadParameter, match="needs --tls-cert"):
        flags.server_tls(None, None, pem)


def test_labels_are_pairs() -> None:
    assert flags.labels(["zone=a", "b="]) == {"zone": "a", "b": ""}
    with pytest.raises(typer.BadParameter, match="expected key=value, got 'zone'"):
        flags.labels(["zone"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["router", "--registry", "nonsense"], "expected host:port, got 'nonsense'"),
        (["router", "--log-level", "loud"], "expected a log level of debug, info, warning, error, got 'loud'"),
        (["router", "--loop", "fast"], "expected auto, uvloop or asyncio, got 'fast'"),
        (["router", "--grpc-port", "70000"], "--grpc-port"),
        (["router", "--http-header-forward-pattern", "("], "expected a regular expression for names of headers"),
        (["node", "--id", "a", "--models", ".", "--grpc-header-forward-pattern", "["], "expected a regular expression"),
        (["router", "--registry-user", "mesh"], "user 'mesh' needs a password"),
        (["node", "--id", "", "--models", "."], "expected a name, got an empty text"),
        (["node", "--id", "a", "--models", "/no/such/folder"], "expected a folder of models, found none at"),
        (["node", "--models", "."], "Missing option '--id'"),
        (["up", "--nodes", "0"], "--nodes"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_wrong_flags_exit_2_with_one_sentence(words: list[str], sentence: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_help_names_the_commands_and_loads_no_grpc() -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name in ("up", "router", "node", "infer", "models", "nodes", "demo", "bench"):
        assert f"│ {name} " in out
    slow = ("grpc", "numpy", "onnxruntime", "uvicorn", "google.protobuf", "mesh_client")
    loaded = f"import sys; from mesh.cli import main; sys.exit(any(name in sys.modules for name in {slow}))"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


def test_the_version_is_printed() -> None:
    assert run("--version") == (0, f"mesh {mesh.__version__}, Python {platform.python_version()}\n", "")
