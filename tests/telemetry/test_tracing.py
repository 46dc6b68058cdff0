"""Tracing: spans that arrive at a real OTLP receiver and join up over metadata."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from mesh.core.errors import Code
from mesh.telemetry import tracing
from mesh.telemetry.tracing import OFF, Tracing, configure
from tests.telemetry.receiver import Receiver, attributes, receiving

INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    """A running receiver and its endpoint."""
    with receiving() as found:
        yield found


def router(endpoint: str, ratio: float = 1.0) -> Tracing:
    return configure("mesh-router", node_or_router_id="r", sample_ratio=ratio, endpoint=endpoint)


def test_router_and_node_spans_join_up_at_the_receiver(receiver: tuple[Receiver, str]) -> None:
    servicer, endpoint = receiver
    first = router(endpoint)
    second = configure("mesh-node", node_or_router_id="a", sample_ratio=0.0, endpoint=endpoint)
    server = first.start(INFER, (), kind="server", attributes={tracing.MODEL: "iris"})
    client = first.start("attempt", first.headers(server), kind="client", attributes={tracing.NODE: "a"})
    sent = first.headers(client)
    node = second.start(INFER, (("te", "trailers"), *sent, ("x-bin", b"\x00")), attributes={tracing.BATCH_SIZE: 4})
    second.end(node, Code.OK)
    first.end(client)
    first.end(server, Code.NOT_FOUND, "no such model")
    first.shutdown()
    second.shutdown()

    by_service = {(names["service.name"], span.kind): span for names, span in servicer.spans}
    assert len(servicer.spans) == 3
    top = by_service["mesh-router", 2]
    call = by_service["mesh-router", 3]
    run = by_service["mesh-node", 2]
    assert top.trace_id == call.trace_id == run.trace_id
    assert (top.parent_span_id, call.parent_span_id, run.parent_span_id) == (b"", top.span_id, call.span_id)
    assert top.name == "inference.GRPCInferenceService/ModelInfer"
    assert attributes(top) == {
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
        "rpc.response.status_code": "NOT_FOUND",
        "mesh.model": "iris",
    }
    assert attributes(run)["mesh.batch_size"] == 4
    assert {names["service.instance.id"] for names, _ in servicer.spans} == {"r", "a"}


@pytest.mark.parametrize(
    ("kind", "code", "failed"),
    [
        ("server", Code.OK, False),
        ("server", Code.NOT_FOUND, False),
        ("server", Code.UNAVAILABLE, True),
        ("client", Code.NOT_FOUND, True),
        ("internal", Code.CANCELLED, True),
    ],
)
def test_a_span_is_an_error_where_this_side_is_at_fault(
    receiver: tuple[Receiver, str], *, kind: tracing.Kind, code: Code, failed: bool
) -> None:
    servicer, endpoint = receiver
    live = router(endpoint)
    live.end(live.start("x", kind=kind), code, "because")
    live.shutdown()
    status = servicer.named("x").status
    assert (status.code, status.message) == ((2, "because") if failed else (0, ""))


def test_the_callers_trace_is_continued_and_its_decision_kept(receiver: tuple[Receiver, str]) -> None:
    servicer, endpoint = receiver
    live = router(endpoint, ratio=0.0)
    trace = "0af7651916cd43dd8448eb211c80319c"
    sampled = live.start("sampled", (("traceparent", f"00-{trace}-b7ad6b7169203331-01"), ("tracestate", "k=v")))
    unsampled = live.start("unsampled", (("traceparent", f"00-{trace}-b7ad6b7169203331-00"),))
    assert dict(live.headers(sampled))["tracestate"] == "k=v"
    assert str(dict(live.headers(unsampled))["traceparent"]).endswith("-00")
    live.end(sampled)
    live.end(unsampled)
    live.shutdown()
    assert [span.name for _, span in servicer.spans] == ["sampled"]
    assert servicer.named("sampled").trace_id.hex() == trace
    assert servicer.named("sampled").parent_span_id.hex() == "b7ad6b7169203331"


@pytest.mark.parametrize("parent", ["", "nonsense", "00-0-0-01", "ff-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_broken_traceparent_begins_a_new_trace(receiver: tuple[Receiver, str], parent: str) -> None:
    servicer, endpoint = receiver
    live = router(endpoint)
    live.end(live.start("x", (("traceparent", parent),)))
    live.shutdown()
    assert servicer.named("x").parent_span_id == b""


def test_the_ratio_can_be_changed_while_running(receiver: tuple[Receiver, str]) -> None:
    servicer, endpoint = receiver
    live = router(endpoint, ratio=0.0)
    live.end(live.start("before"))
    live.set_sample_ratio(1.0)
    assert live.sample_ratio == 1.0
    live.end(live.start("after"))
    with pytest.raises(ValueError, match="range"):
        live.set_sample_ratio(2.0)
    live.shutdown()
    assert [span.name for _, span in servicer.spans] == ["after"]


def test_off_makes_no_spans_and_no_headers() -> None:
    assert configure("mesh-node", node_or_router_id="a", sample_ratio=1.0, endpoint="") is OFF
    assert OFF.on is False
    assert OFF.start(INFER) is None
    assert OFF.headers(None) == ()
    OFF.end(None, Code.INTERNAL)
    OFF.set_sample_ratio(0.5)
    assert OFF.sample_ratio == 0.0
    OFF.shutdown()


def test_after_shutdown_it_is_off(receiver: tuple[Receiver, str]) -> None:
    _, endpoint = receiver
    live = router(endpoint)
    span = live.start("open")
    live.shutdown()
    live.shutdown()
    assert live.on is False
    assert live.start("late") is None
    assert live.headers(span) == ()
    live.end(span)


def test_shutdown_with_nobody_at_the_endpoint_ends_in_time() -> None:
    with grpc_port() as endpoint:
        live = router(endpoint)
    live.end(live.start("lost"))
    begun = time.monotonic()
    live.shutdown()
    assert time.monotonic() - begun < 8 * tracing.SHUTDOWN_S


class grpc_port:  # noqa: N801 - reads as a function
    """A port that nobody listens on after the block."""

    def __enter__(self) -> str:
        self.server = grpc.server(futures.ThreadPoolExecutor(1))
        return f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def __exit__(self, *_: object) -> None:
        self.server.stop(0).wait()


def test_a_ratio_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a sampling ratio from 0 to 1, got 1\.5"):
        configure("x", node_or_router_id="a", sample_ratio=1.5, endpoint="")


def test_off_imports_nothing_of_opentelemetry() -> None:
    code = (
        "import sys; from mesh.telemetry.tracing import configure;"
        "t = configure('x', node_or_router_id='a', sample_ratio=1.0, endpoint=''); t.end(t.start('/a/b'));"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
