"""The responses of one request, counted by their place: what came, and what came in place of the next."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh.core.errors import Overloaded
from mesh.node.responses import Responses
from mesh.router.catalog import summed
from mesh.telemetry.statistics import Statistics


def run(statistics: Statistics, made: int, end: BaseException | None = None) -> None:
    counted = Responses(statistics)
    try:
        with counted:
            for _ in range(made):
                counted.made()
                counted.written()
                counted.sent()
            if end is not None:
                raise end
    finally:
        counted.close()


def counts(message: Any) -> dict[str, dict[str, int]]:
    return {
        key: {field.name: value.count for field, value in each.ListFields() if value.count}
        for key, each in message.response_stats.items()
    }


DONE = {"compute_infer": 1, "compute_output": 1, "success": 1}


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (None, {"compute_infer": 1, "empty_response": 1}),
        (ValueError("no more"), {"compute_infer": 1, "fail": 1}),
        (asyncio.CancelledError(), {"cancel": 1}),
        (GeneratorExit(), {"cancel": 1}),
    ],
)
def test_the_end_stands_where_the_next_response_would(end: BaseException | None, expected: dict[str, int]) -> None:
    statistics = Statistics()
    if end is None:
        run(statistics, 1)
    else:
        with pytest.raises(type(end)):
            run(statistics, 1, end)
    assert counts(statistics.message("m", "1", 0)) == {"0": DONE, "1": expected}


def test_a_request_that_was_not_run_has_no_response() -> None:
    statistics = Statistics()
    with pytest.raises(Overloaded):
        run(statistics, 0, Overloaded("full"))
    assert counts(statistics.message("m", "1", 0)) == {}


def test_a_response_takes_what_its_stages_take() -> None:
    statistics = Statistics()
    run(statistics, 3)
    for each in statistics.responses.values():
        assert each.success.ns == (each.compute_infer.ns + each.compute_output.ns if each.success.count else 0)


def test_nodes_add_up() -> None:
    one, other = Statistics(), Statistics()
    run(one, 2)
    run(other, 1)
    (both,) = summed([one.message("m", "1", 0), other.message("m", "1", 0)])
    assert counts(both) == {
        "0": {"compute_infer": 2, "compute_output": 2, "success": 2},
        "1": DONE | {"compute_infer": 2, "empty_response": 1},
        "2": {"compute_infer": 1, "empty_response": 1},
    }
