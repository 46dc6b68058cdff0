from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.core.placement.ledger import MIN_BYTES, Idle, Ledger, predicted_bytes
from mesh.core.types import ModelName, Version

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

idles = st.lists(
    st.builds(Idle, key=st.integers(0, 1000).map(key), bytes=st.integers(1, 40), last_used_s=st.floats(0, 10)),
    max_size=6,
    unique_by=lambda idle: idle.key,
)


@given(idles, st.integers(0, 200))
def test_victims_make_room_and_none_of_them_is_needless(idle: list[Idle], size: int) -> None:
    ledger = Ledger(sum(each.bytes for each in idle))
    for each in idle:
        assert ledger.reserve(each.key, each.bytes)
        ledger.commit(each.key, each.bytes)
    victims = ledger.victims(size, idle)
    sizes = {each.key: each.bytes for each in idle}
    if victims is None:
        assert size > ledger.capacity
        return
    freed = sum(sizes[victim] for victim in victims)
    assert freed >= size
    assert all(freed - sizes[victim] < size for victim in victims)


def test_the_least_recently_used_goes_first() -> None:
    ledger = Ledger(20)
    idle = [Idle(key(1), 10, last_used_s=5.0), Idle(key(2), 10, last_used_s=1.0)]
    for each in idle:
        ledger.reserve(each.key, each.bytes)
        ledger.commit(each.key, each.bytes)
    assert ledger.victims(10, idle) == [key(2)]


def test_small_files_are_predicted_to_take_a_session_at_least() -> None:
    assert predicted_bytes(10) == MIN_BYTES
    assert predicted_bytes(10 * MIN_BYTES) == 20 * MIN_BYTES
