"""How often a call is sent, and how many processes it may end, whatever path it takes through the router."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from mesh.api.details import read_details
from mesh.api.messages import InferParameter
from mesh.core import suspects
from mesh.core.errors import Code, NotReady, RemoteError, WorkerDied
from mesh.core.suspects import Death
from mesh.core.types import NodeId
from mesh.registry import records
from mesh.registry.keys import suspect_key
from mesh.wire.client import WireChannel
from tests.fixtures.culprits import MODELS, MOST, NODES, Bench, benched


@pytest.fixture
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with benched(getattr(request, "param", NODES)) as found:
        yield found


SEQUENCE = {
    "sequence_id": InferParameter(int64_param=7),
    "sequence_start": InferParameter(bool_param=True),
}


@pytest.mark.parametrize("warm", [True, False], ids=["hop", "handed over"])
async def test_a_call_that_processes_die_of_ends_two_at_most(bench: Bench, warm: bool) -> None:
    if warm:
        await bench.warm()
    error = await bench.unary()
    assert (bench.asked, bench.dead) == (2, 2)
    assert isinstance(error, RemoteError)
    assert error.status is Code.UNAVAILABLE


async def test_a_call_that_is_handed_over_takes_its_deaths_along(bench: Bench) -> None:
    """With a connection to two nodes alone the first copy is asked on the wire's own path, the next one not."""
    channel = bench.channels.to(bench.nodes[0].server.address)
    assert isinstance(channel, WireChannel)
    await channel.links.connection()
    await bench.unary()
    assert (bench.asked, bench.dead) == (2, 2)


async def test_after_a_call_that_ended_two_the_next_ones_end_one_each(bench: Bench) -> None:
    """What the nodes died of is told by those that come after them, which takes a moment."""
    await bench.warm()
    for dead in (2, 3, 4):
        await bench.unary()
        assert (bench.asked, bench.dead) == (dead, dead)


@pytest.mark.parametrize("model", ["m", "several", "steps"])
async def test_a_message_of_a_stream_that_processes_die_of_ends_two_at_most(bench: Bench, model: str) -> None:
    await bench.warm()
    parameters = SEQUENCE if model == "steps" else {}
    assert await bench.streamed(model, **parameters)
    assert (bench.asked, bench.dead) == (2, 2)


async def test_a_step_of_a_session_that_processes_die_of_ends_two_at_most(bench: Bench) -> None:
    await bench.warm()
    error = await bench.unary("steps", **SEQUENCE)
    assert (bench.asked, bench.dead) == (2, 2)
    assert isinstance(error, RemoteError)
    assert error.status is Code.ABORTED


async def test_a_request_for_a_pipeline_that_processes_die_of_ends_two_at_most(bench: Bench) -> None:
    await bench.warm()
    await bench.unary("p")
    assert (bench.asked, bench.dead) == (2, 2)


@pytest.mark.parametrize("warm", [True, False], ids=["hop", "handed over"])
async def test_a_call_whose_workers_die_is_sent_to_one_other_copy(bench: Bench, warm: bool) -> None:
    if warm:
        await bench.warm()
    bench.all_end(WorkerDied("its worker ended"))
    error = await bench.unary()
    assert "its worker ended" in error.message
    assert isinstance(error, RemoteError)
    assert not [key for key, _ in error.trailers if key.startswith("mesh-")]
    assert bench.asked == 2


@pytest.mark.parametrize("model", ["m", "several", "steps"])
async def test_a_message_of_a_stream_whose_workers_die_is_sent_to_one_other_copy(bench: Bench, model: str) -> None:
    await bench.warm()
    bench.all_end(WorkerDied("its worker ended"))
    assert await bench.streamed(model, **(SEQUENCE if model == "steps" else {}))
    assert bench.asked == 2


@pytest.mark.parametrize("warm", [True, False], ids=["hop", "handed over"])
async def test_a_call_that_is_refused_is_sent_as_often_as_the_router_is_told(bench: Bench, warm: bool) -> None:
    if warm:
        await bench.warm()
    bench.all_end(NotReady("not now"))
    await bench.unary()
    assert bench.asked == MOST


@pytest.mark.parametrize("bench", [2], indirect=True)
async def test_a_call_refused_by_every_copy_is_sent_so_often_however_few_they_are(bench: Bench) -> None:
    """Two copies: the hop asks both and hands over, and what follows is the third attempt and not the first."""
    await bench.warm()
    bench.all_end(NotReady("not now"))
    await bench.unary()
    assert bench.asked == MOST


async def test_a_message_of_a_stream_that_is_refused_is_sent_as_often_as_the_router_is_told(bench: Bench) -> None:
    await bench.warm()
    bench.all_end(NotReady("not now"))
    await bench.streamed()
    assert bench.asked == MOST


async def accuse(bench: Bench, deaths: int) -> None:
    """Let every model have ended so many processes, a moment ago."""
    for model in MODELS:
        suspect = None
        for _ in range(deaths):
            suspect = suspects.died(suspect, model, Death.WORKER, "segmentation fault", NodeId("n0"), time.time())
        assert suspect is not None
        await bench.store.put(suspect_key(model.name, model.version), records.encode(suspect))
    await bench.mirror.wait_for(lambda view: len(view.suspects) == len(MODELS))


@pytest.mark.parametrize("model", ["m", "steps", "p"])
async def test_a_call_for_a_suspect_that_its_process_died_of_is_sent_nowhere_else(bench: Bench, model: str) -> None:
    await bench.warm()
    await accuse(bench, 1)
    await bench.unary(model, **(SEQUENCE if model == "steps" else {}))
    assert (bench.asked, bench.dead) == (1, 1)


@pytest.mark.parametrize("model", ["m", "several", "steps"])
async def test_a_message_for_a_suspect_that_its_process_died_of_is_sent_nowhere_else(bench: Bench, model: str) -> None:
    await bench.warm()
    await accuse(bench, 1)
    assert await bench.streamed(model, **(SEQUENCE if model == "steps" else {}))
    assert (bench.asked, bench.dead) == (1, 1)


@pytest.mark.parametrize("warm", [True, False], ids=["hop", "handed over"])
@pytest.mark.parametrize("model", ["m", "steps", "p"])
async def test_a_call_for_a_quarantined_model_asks_no_node_and_says_why(bench: Bench, model: str, warm: bool) -> None:
    if warm:
        await bench.warm()
    await accuse(bench, 3)
    error = await bench.unary(model, **(SEQUENCE if model == "steps" else {}))
    assert isinstance(error, RemoteError)
    assert error.status is Code.FAILED_PRECONDITION
    assert "segmentation fault" in error.message
    told = read_details(error.trailers)
    assert (told.reason, told.facts["deaths"], told.facts["last"]) == ("QUARANTINED", "3", "segmentation fault")
    assert told.retry_after_s is not None
    assert 0 < told.retry_after_s <= suspects.FIRST_QUARANTINE_S
    assert float(told.facts["until"]) > time.time()
    assert bench.asked == 0


@pytest.mark.parametrize("model", ["m", "several", "steps"])
async def test_a_message_for_a_quarantined_model_asks_no_node(bench: Bench, model: str) -> None:
    await bench.warm()
    await accuse(bench, 3)
    assert "quarantined" in await bench.streamed(model, **(SEQUENCE if model == "steps" else {}))
    assert bench.asked == 0


async def test_callers_come_through_again_when_a_quarantine_is_over_though_no_view_tells_of_it(bench: Bench) -> None:
    await bench.warm()
    bench.all_end(NotReady("asked"))
    await accuse(bench, 3)
    model = MODELS[0]
    known = bench.mirror.view.suspects[model.name, model.version]
    await bench.store.put(
        suspect_key(model.name, model.version), records.encode(replace(known, until_s=time.time() + 0.5))
    )
    await bench.mirror.wait_for(lambda view: view.suspects[model.name, model.version].until_s != known.until_s)
    assert "quarantined" in (await bench.unary()).message
    end_s = time.monotonic() + 30
    while "quarantined" in (await bench.unary()).message:
        assert time.monotonic() < end_s
    assert bench.asked == MOST
