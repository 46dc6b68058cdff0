from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.core.placement.ledger import ENOUGH_LOADED, MIN_BYTES, Ledger, learned_factors, predicted_bytes
from mesh.core.types import ModelName, ModelVersion, Version

CAPACITY = 100


def key(index: int) -> tuple[ModelName, Version]:
    return ModelName(f"m{index}"), Version("1")


class Account(RuleBasedStateMachine):
    """Loads come and go; the sums stay true."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(CAPACITY)
        self.reserved: dict[int, int] = {}
        self.held: dict[int, int] = {}

    @rule(index=st.integers(0, 5), size=st.integers(0, 120))
    def reserve(self, index: int, size: int) -> None:
        fits = index not in self.reserved and size <= max(
            0, CAPACITY - sum(self.reserved.values()) - sum(self.held.values())
        )
        assert self.ledger.reserve(key(index), size) is fits
        if fits:
            self.reserved[index] = size

    @precondition(lambda self: self.reserved)
    @rule(data=st.data(), measured=st.integers(0, 120))
    def commit(self, data: st.DataObject, measured: int) -> None:
        index = data.draw(st.sampled_from(sorted(self.reserved)))
        self.ledger.commit(key(index), measured)
        del self.reserved[index]
        self.held[index] = measured

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.reserved)))
        self.ledger.cancel(key(index))
        del self.reserved[index]

    @rule(index=st.integers(0, 5))
    def release(self, index: int) -> None:
        self.ledger.release(key(index))
        self.held.pop(index, None)

    @invariant()
    def sums_are_true(self) -> None:
        assert self.ledger.held == sum(self.held.values())
        assert self.ledger.reserved == sum(self.reserved.values())
        assert 0 <= self.ledger.free <= CAPACITY


TestAccount = Account.TestCase


def test_small_files_are_predicted_to_take_a_session_at_least() -> None:
    assert predicted_bytes(version(size_bytes=10)) == MIN_BYTES
    assert predicted_bytes(version(size_bytes=10 * MIN_BYTES)) == 20 * MIN_BYTES


def test_what_a_copy_took_is_expected_again() -> None:
    assert predicted_bytes(version(size_bytes=10 * MIN_BYTES, loaded_bytes=13 * MIN_BYTES)) == 13 * MIN_BYTES


def version(*, size_bytes: int, loaded_bytes: int = 0) -> ModelVersion:
    return ModelVersion(*key(0), "onnx", "file:///r/m/1", "d", size_bytes, loaded_bytes=loaded_bytes)


def loaded(size: int, taken: int, runtime: str = "onnx") -> ModelVersion:
    return replace(version(size_bytes=size * MIN_BYTES, loaded_bytes=taken * MIN_BYTES), runtime=runtime)


def test_a_runtime_learns_what_its_models_take() -> None:
    known = [loaded(10, 10 + 3 * number) for number in range(ENOUGH_LOADED)]
    assert learned_factors(known[:-1]) == {}
    factors = learned_factors([*known, loaded(10, 900, "python"), version(size_bytes=10 * MIN_BYTES)])
    assert factors == {"onnx": 1.9}
    assert predicted_bytes(version(size_bytes=10 * MIN_BYTES), factors) == 19 * MIN_BYTES
    assert predicted_bytes(replace(version(size_bytes=10 * MIN_BYTES), runtime="python"), factors) == 20 * MIN_BYTES
    assert predicted_bytes(known[0], factors) == 10 * MIN_BYTES


def test_small_models_say_nothing_about_a_runtime() -> None:
    tiny = version(size_bytes=MIN_BYTES // 2, loaded_bytes=MIN_BYTES)
    assert learned_factors([tiny] * 100) == {}
