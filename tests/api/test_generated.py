"""Generated files are fresh, and the protocol's numbers are Triton's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as their_config
from tritonclient.grpc import service_pb2 as their_service

from mesh.api.gen.inference import grpc_service_pb2 as our_service
from mesh.api.gen.inference import model_config_pb2 as our_config
from tests.fixtures.mesh import ROOT

LEFT_OUT = {
    "inference.ModelConfig": {
        "batch_input",
        "batch_output",
        "optimization",
        "model_warmup",
        "model_operations",
        "model_repository_agents",
        "model_metrics",
    },
    "inference.ModelInstanceGroup": {"rate_limiter", "secondary_devices"},
}
"""Server-side tuning that means nothing in a mesh. Clients see these unset."""

OURS_ALONE = {
    "inference.ModelInferRequest": {"session_state"},
    "inference.ModelInferResponse": {"session_state"},
    "inference.RepositoryModelLoadResponse": {"model_name", "isLoaded"},
    "inference.RepositoryModelUnloadResponse": {"model_name", "isUnloaded"},
}
"""What KServe's callers read, and the state of sessions between the mesh's own; Triton's skip it."""


@pytest.mark.parametrize("script", ["gen_protos.py", "gen_sync_client.py"])
def test_generating_again_changes_nothing(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), "--check"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def messages(file: Any) -> Iterator[Any]:
    queue = list(file.message_types_by_name.values())
    while queue:
        message = queue.pop()
        queue.extend(message.nested_types)
        yield message


def shape(field: Any) -> tuple[Any, ...]:
    kind = field.message_type or field.enum_type
    return (field.number, field.type, field.is_repeated, kind.full_name if kind else "")


OURS = {
    message.full_name: message for file in (our_service.DESCRIPTOR, our_config.DESCRIPTOR) for message in messages(file)
}
THEIRS = {
    message.full_name: message
    for file in (their_service.DESCRIPTOR, their_config.DESCRIPTOR)
    for message in messages(file)
}


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_field_has_tritons_number_and_type(name: str) -> None:
    ours = {field.name: shape(field) for field in OURS[name].fields}
    theirs = {field.name: shape(field) for field in THEIRS[name].fields}
    for left_out in LEFT_OUT.get(name, set()):
        assert theirs.pop(left_out)
    for alone in OURS_ALONE.get(name, set()):
        assert ours.pop(alone)
    assert ours == theirs


def test_the_service_has_tritons_methods() -> None:
    ours = our_service.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    theirs = their_service.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    described = [
        {
            (m.name, m.input_type.full_name, m.output_type.full_name, m.client_streaming, m.server_streaming)
            for m in each.methods
        }
        for each in (ours, theirs)
    ]
    assert described[0] == described[1]
