"""docker-compose.yml starts a mesh that fits together, with commands that the command line knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mesh.cli.main import app

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
MESH = sorted(name for name in SERVICES if name != "etcd")


def flags_of(name: str) -> dict[str, str]:
    """Return the flags of a service's command; each takes one value."""
    words = SERVICES[name]["command"][1:]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_there_are_etcd_a_router_and_two_nodes() -> None:
    assert sorted(SERVICES) == ["etcd", "node-a", "node-b", "router"]


@pytest.mark.parametrize("name", MESH)
def test_the_command_line_accepts_each_command(name: str) -> None:
    command: Any = typer.main.get_command(app)
    program, *words = SERVICES[name]["command"]
    context = command.commands[program].make_context(program, list(words))
    for flag, value in flags_of(name).items():
        parsed = context.params[flag.removeprefix("--").replace("-", "_")]
        assert str(parsed[0] if isinstance(parsed, list | tuple) else parsed) == value


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_ports_are_published_on_loopback_alone(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_the_router_publishes_the_ports_that_clients_expect() -> None:
    assert SERVICES["router"]["ports"] == ["127.0.0.1:8001:8001", "127.0.0.1:8000:8000"]
    assert flags_of("router")["--grpc-port"] == "8001"
    assert flags_of("router")["--http-port"] == "8000"


@pytest.mark.parametrize("name", ["node-a", "node-b"])
def test_a_node_is_reached_under_its_services_name_and_sees_models_read_only(name: str) -> None:
    flags = flags_of(name)
    assert flags["--id"] == name
    assert flags["--advertise"] == f"{name}:{flags['--grpc-port']}"
    mount, state = SERVICES[name]["volumes"]
    assert state.split(":") == ["node-state", "/var/lib/mesh"]
    assert "node-state" in COMPOSE["volumes"]
    assert mount["read_only"] is True
    inside = Path(flags["--models"]).relative_to(mount["target"])
    assert list((ROOT / mount["source"] / inside).glob("*/model.yaml"))


@pytest.mark.parametrize("name", MESH)
def test_the_mesh_waits_for_a_healthy_etcd_at_its_own_address(name: str) -> None:
    assert SERVICES[name]["depends_on"] == {"etcd": {"condition": "service_healthy"}}
    assert flags_of(name)["--registry"] == "etcd:2379"
    assert "--advertise-client-urls=http://etcd:2379" in SERVICES["etcd"]["command"]


def test_images_are_pinned_and_built_from_files_that_exist() -> None:
    _, _, tag = SERVICES["etcd"]["image"].partition(":")
    assert tag.startswith("v3.")
    for name in MESH:
        build = SERVICES[name]["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file()


def test_the_image_copies_only_what_is_in_the_checkout_and_not_ignored() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"
    }
    assert copied
    assert set(copied) <= allowed
    assert [name for name in copied if not (ROOT / name).exists()] == []
