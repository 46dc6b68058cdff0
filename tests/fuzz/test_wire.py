from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import seeds
from tests.fuzz.wire_targets import WIRE_TARGETS


@pytest.mark.parametrize("name", WIRE_TARGETS)
def test_real_bytes(name: str) -> None:
    for seed in seeds.of(name):
        WIRE_TARGETS[name](seed)


@pytest.mark.parametrize("name", WIRE_TARGETS)
@settings(max_examples=100, deadline=None)
@given(data=st.data(), step=st.integers(0, 9))
def test_real_bytes_changed_cut_and_put_together(name: str, data: st.DataObject, step: int) -> None:
    mutated = bytearray()
    for _ in range(data.draw(st.integers(1, 3))):
        seed = data.draw(st.sampled_from(seeds.of(name)))
        start = data.draw(st.integers(0, len(seed))) if mutated else 0
        mutated += seed[start : data.draw(st.integers(start, len(seed)))]
    for _ in range(data.draw(st.integers(0, 4))):
        if mutated:
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    if mutated:
        mutated[0] = step
    WIRE_TARGETS[name](bytes(mutated))
