"""What a node keeps for routers without room: never more than it may, and always what it promised."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.node.kept import OWNER_S, Kept

MOST = 100
OWNERS = st.sampled_from(("r1", "r2"))


class Keeping(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.kept = Kept(MOST)
        self.kept._sweeper = object()  # type: ignore[assignment] # time passes by a rule here, not in a loop
        self.model: dict[str, dict[int, bytes]] = {}
        self.heard: dict[str, float] = {}
        self.now_s = 0.0

    @rule(owner=OWNERS, key=st.integers(0, 5), state=st.binary(min_size=1, max_size=60))
    def keep(self, owner: str, key: int, state: bytes) -> None:
        mine = self.model.get(owner, {})
        fits = self.size() - len(mine.get(key, b"")) + len(state) <= MOST
        assert self.kept.keep(owner, key, state, self.now_s) is fits
        if fits:
            self.model.setdefault(owner, {})[key] = state
            self.heard.setdefault(owner, self.now_s)

    @rule(owner=OWNERS, dropped=st.lists(st.integers(0, 5)))
    def hear(self, owner: str, dropped: list[int]) -> None:
        assert self.kept.renew(owner, dropped, self.now_s) is (owner not in self.model)
        if owner in self.model:
            self.heard[owner] = self.now_s
            self.model[owner] = {key: state for key, state in self.model[owner].items() if key not in dropped}
            if not self.model[owner]:
                self.forget(owner)

    @rule(seconds=st.floats(0, OWNER_S))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.kept.forget_silent(self.now_s)
        for owner in [owner for owner, heard_s in self.heard.items() if self.now_s - heard_s > OWNER_S]:
            self.forget(owner)

    def forget(self, owner: str) -> None:
        del self.model[owner], self.heard[owner]

    def size(self) -> int:
        return sum(len(state) for mine in self.model.values() for state in mine.values())

    @invariant()
    def it_keeps_what_it_said(self) -> None:
        assert self.kept.kept_bytes == self.size() <= MOST
        assert len(self.kept) == sum(len(mine) for mine in self.model.values())
        for owner in ("r1", "r2"):
            for key in range(6):
                assert self.kept.find(owner, key) == self.model.get(owner, {}).get(key)


TestKeeping = Keeping.TestCase
TestKeeping.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
