"""A mesh in a test: views, passes of the leader and cold requests over nodes that load and evict by the real rules."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.core.fold import Change, CopyChange, ModelChange, NodeChange, PlacementChange, fold
from mesh.core.placement.cold import Place, Refused, Serving, Waiting, cold_step
from mesh.core.placement.demand import Demand, Usage
from mesh.core.placement.duties import HOT_RATE, Duty, Pass
from mesh.core.placement.evict import Idle, curve, in_order, victims
from mesh.core.placement.ledger import Ledger, predicted_bytes
from mesh.core.types import (
    Copy,
    CopyState,
    Device,
    DeviceKind,
    ModelName,
    ModelVersion,
    Node,
    NodeId,
    Placement,
    Scaling,
    Version,
)
from mesh.core.view import ClusterView, VersionKey
from tests.fixtures.registered import registered

MIB = 1024 * 1024


def version(number: int, scaling: Scaling | None = None, *, size: int = 10) -> ModelVersion:
    name = ModelName(f"m{number}")
    return ModelVersion(
        name,
        Version("1"),
        "onnx",
        f"file:///r/{name}/1",
        "d",
        1,
        loaded_bytes=size * MIB,
        load_s=1.0,
        scaling=scaling or Scaling(),
    )


class Mesh:
    """Nodes, models and placements; what is decided is done at once."""

    def __init__(self, capacity: int = 30) -> None:
        self.now_s = 1e6
        self.capacity = capacity
        self.view = ClusterView()
        self.ledgers: dict[NodeId, Ledger] = {}
        self.held: dict[NodeId, dict[VersionKey, ModelVersion]] = {}
        self.leaving: set[NodeId] = set()
        self.demand = Demand()
        self.counts: dict[tuple[NodeId, VersionKey], int] = {}

    def change(self, *changes: Change) -> None:
        self.view = fold(self.view, changes, self.view.revision + 1)

    def add_model(self, model: ModelVersion) -> None:
        self.change(ModelChange((model.name, model.version), model))

    def join(self, name: str) -> None:
        id_ = NodeId(name)
        self.ledgers[id_], self.held[id_] = Ledger(self.capacity * MIB), {}
        self.leaving.discard(id_)
        self.tell(id_)

    def lose(self, id_: NodeId) -> None:
        del self.ledgers[id_], self.held[id_]
        self.leaving.discard(id_)
        self.change(NodeChange(id_, None), *(CopyChange(id_, key, None) for key in sorted(self.view.held.get(id_, {}))))

    def tell(self, id_: NodeId) -> None:
        ledger, held = self.ledgers[id_], self.held[id_]
        total, free = ledger.capacity, ledger.free
        device = Device(DeviceKind.CPU, 0, "cpu", total, free, curve(self.order(id_)))
        copies = tuple(Copy(*key, CopyState.READY, bytes=ledger.bytes_of(key), digest="d") for key in sorted(held))
        node = Node(id_, id_, "i", devices=(device,), repositories=("file:///r",))
        gone = self.view.held.get(id_, {}).keys() - held.keys()
        self.change(
            *registered(replace(node, leaving=id_ in self.leaving), copies),
            *(CopyChange(id_, key, None) for key in sorted(gone)),
        )

    def order(self, id_: NodeId) -> list[Idle]:
        found = []
        for key, model in self.held[id_].items():
            others = sum(each.node.id != id_ for each in self.view.serving.get(key, ()))
            if others >= model.scaling.min_copies:
                loss = self.demand.rate(key, self.now_s) * (0.1 if others else 1.0)
                found.append(Idle(key, self.ledgers[id_].bytes_of(key), loss))
        return in_order(found)

    def reconcile(self) -> None:
        """Let every node do what the placements say, with the last word on its memory."""
        for id_ in sorted(self.held):
            wanted = {key: self.view.models[key[0]][key[1]] for key in self.view.placed.get(id_, {})}
            for key in self.held[id_].keys() - wanted.keys():
                self.drop(id_, key)
            for key in sorted(wanted.keys() - self.held[id_].keys()):
                self.load(id_, key, wanted[key])
            self.tell(id_)

    def load(self, id_: NodeId, key: VersionKey, model: ModelVersion) -> None:
        ledger, needs = self.ledgers[id_], predicted_bytes(model)
        if not ledger.reserve(key, needs):
            going = victims(needs - ledger.free, self.order(id_))
            for each in going or ():
                self.leave(id_, each.key)
                self.drop(id_, each.key)
            if going is None or not ledger.reserve(key, needs):
                self.leave(id_, key)
                return
        ledger.commit(key, needs)
        self.held[id_][key] = model

    def drop(self, id_: NodeId, key: VersionKey) -> None:
        del self.held[id_][key]
        self.ledgers[id_].release(key)
        self.tell(id_)

    def leave(self, id_: NodeId, key: VersionKey) -> None:
        placement = self.view.placements[key]
        nodes = tuple(node for node in placement.nodes if node != id_)
        self.change(PlacementChange(key, replace(placement, nodes=nodes)))

    def ask(self, key: VersionKey, count: int = 1) -> bool:
        """One caller; tell whether it was answered. It is never left without one or the other."""
        for _ in range(10):
            model = self.view.models[key[0]][key[1]]
            placement = self.view.placements.get(key)
            step = cold_step(self.view, model, placement, avoid=(), now_s=self.now_s, since_s=self.now_s - 60)
            match step:
                case Serving():
                    node = self.view.serving[key][0].node.id
                    self.counts[node, key] = self.counts.get((node, key), 0) + count
                    return True
                case Place(placement):
                    self.change(PlacementChange(key, placement))
                    self.reconcile()
                case Refused():
                    return False
                case Waiting():
                    # Nothing else is going on here that could be waited for.
                    return False
        raise AssertionError(f"{key} was placed again and again")

    def second(self) -> None:
        """Let a second pass, and the leader read what was asked."""
        self.now_s += 1
        told = [(node, Usage(key, count, 1e-5 * count, 0, 0.5)) for (node, key), count in self.counts.items()]
        self.demand.read(told, self.now_s - 1, self.now_s)

    def duties(self) -> list[Duty]:
        return Pass(self.view, self.demand, now_s=self.now_s, begun_s=1e6).duties(fill=True)

    def settle(self) -> int:
        """Do the duties until there are none; return how many rounds it took."""
        for rounds in range(20):
            found = self.duties()
            if not found:
                return rounds
            for duty in found:
                assert self.view.placements.get((duty.after.model, duty.after.version)) == duty.before
                self.change(PlacementChange((duty.after.model, duty.after.version), duty.after))
                if duty.fewer:
                    self.demand.lowered((duty.after.model, duty.after.version), self.now_s, 1e6)
            self.reconcile()
        raise AssertionError(f"decisions flip without a change: {[duty.why for duty in self.duties()]}")


def placed_on(mesh: Mesh, key: VersionKey) -> set[NodeId]:
    return {each.node.id for each in mesh.view.serving.get(key, ())}


KEY = (ModelName("m0"), Version("1"))


def mesh_of(*names: str, capacity: int = 30) -> Mesh:
    mesh = Mesh(capacity)
    for name in names:
        mesh.join(name)
    return mesh


def hot(mesh: Mesh, key: VersionKey, calls: int = 100) -> None:
    for _ in range(3):
        assert mesh.ask(key, calls)
        mesh.second()
    assert mesh.demand.rate(key, mesh.now_s) >= HOT_RATE


def test_a_minimum_is_loaded_unasked_and_again_elsewhere() -> None:
    mesh = mesh_of("a", "b", "c")
    mesh.add_model(version(0, Scaling(min_copies=2)))
    mesh.settle()
    held = placed_on(mesh, KEY)
    assert len(held) == 2
    mesh.lose(min(held))
    mesh.settle()
    assert len(placed_on(mesh, KEY)) == 2


def test_what_is_in_demand_comes_back_unasked_and_what_is_not_does_not() -> None:
    mesh = mesh_of("a")
    cold = (ModelName("m1"), Version("1"))
    for number in (0, 1):
        mesh.add_model(version(number, Scaling(max_copies=1)))
    assert mesh.ask(cold)
    hot(mesh, KEY)
    mesh.join("b")
    mesh.lose(NodeId("a"))
    mesh.settle()
    assert placed_on(mesh, KEY) == {"b"}
    assert placed_on(mesh, cold) == set()
    assert mesh.ask(cold)


def test_a_leaving_node_is_replaced_before_it_goes() -> None:
    mesh = mesh_of("a")
    mesh.add_model(version(0, Scaling(max_copies=1)))
    hot(mesh, KEY)
    mesh.join("b")
    mesh.leaving.add(NodeId("a"))
    mesh.tell(NodeId("a"))
    mesh.settle()
    assert placed_on(mesh, KEY) == {"a", "b"}


def test_a_model_in_steady_use_gets_a_second_copy_in_free_memory_only() -> None:
    mesh = mesh_of("a", "b")
    mesh.add_model(version(0))
    hot(mesh, KEY, 3000)
    mesh.settle()
    assert placed_on(mesh, KEY) == {"a", "b"}
    full = mesh_of("a", "b", capacity=10)
    for number in (0, 1):
        full.add_model(version(number))
        hot(full, (ModelName(f"m{number}"), Version("1")), 3000)
    full.settle()
    assert [len(placed_on(full, (ModelName(f"m{number}"), Version("1")))) for number in (0, 1)] == [1, 1]


def test_a_node_that_joins_is_filled_with_what_is_in_demand() -> None:
    mesh = mesh_of("a", capacity=20)
    for number in range(4):
        mesh.add_model(version(number, Scaling(max_copies=1)))
    for _ in range(3):
        for number in range(4):
            hot(mesh, (ModelName(f"m{number}"), Version("1")))
    assert len(mesh.held[NodeId("a")]) == 2
    mesh.join("b")
    mesh.settle()
    assert len(mesh.held[NodeId("b")]) >= 1
    assert len(mesh.held[NodeId("a")]) == 2


def test_what_had_to_make_room_a_moment_ago_is_not_brought_back_at_others_expense() -> None:
    mesh = mesh_of("a", capacity=20)
    for number in range(3):
        mesh.add_model(version(number, Scaling(max_copies=1)))
    for number in range(3):
        assert mesh.ask((ModelName(f"m{number}"), Version("1")))
        mesh.second()
    held = set(mesh.held[NodeId("a")])
    assert len(held) == 2
    assert mesh.settle() == 0
    assert set(mesh.held[NodeId("a")]) == held


class Histories(RuleBasedStateMachine):
    """Nodes join, leave and die, callers come, the leader passes, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.mesh = Mesh(capacity=25)
        for number, scaling in enumerate((Scaling(min_copies=1), Scaling(min_copies=2, max_copies=3))):
            self.mesh.add_model(version(number, scaling, size=5))
        for number in range(2, 8):
            self.mesh.add_model(version(number, size=3 + number))

    @rule(name=st.sampled_from("abcd"))
    def join(self, name: str) -> None:
        if NodeId(name) not in self.mesh.ledgers:
            self.mesh.join(name)
            self.mesh.reconcile()

    @precondition(lambda self: self.mesh.ledgers)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.mesh.lose(data.draw(st.sampled_from(sorted(self.mesh.ledgers))))

    @precondition(lambda self: self.mesh.ledgers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.mesh.ledgers)))
        self.mesh.leaving.add(id_)
        self.mesh.tell(id_)

    @rule(number=st.integers(0, 7), count=st.sampled_from([1, 50, 5000]))
    def ask(self, number: int, count: int) -> None:
        key = (ModelName(f"m{number}"), Version("1"))
        answered = self.mesh.ask(key, count)
        staying = set(self.mesh.ledgers) - self.mesh.leaving
        if number >= 2 and staying:
            # Minimums take at most 10 of 25 on a node, and no model takes more than 10.
            assert answered, "a model that would fit was refused"

    @rule(seconds=st.integers(1, 5))
    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.mesh.second()

    @rule()
    def lead(self) -> None:
        self.mesh.reconcile()
        self.mesh.settle()
        staying = set(self.mesh.ledgers) - self.mesh.leaving
        for number, least in ((0, 1), (1, 2)):
            held = placed_on(self.mesh, (ModelName(f"m{number}"), Version("1"))) & staying
            assert len(held) >= min(least, len(staying))

    @invariant()
    def two_leaders_agree(self) -> None:
        assert self.mesh.duties() == self.mesh.duties()

    @invariant()
    def no_device_holds_more_than_it_has(self) -> None:
        assert all(ledger.held + ledger.reserved <= ledger.capacity for ledger in self.mesh.ledgers.values())


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_minimum_whose_load_failed_is_asked_for_anew_when_its_node_may_be() -> None:
    """A node tries what failed there again for another request only, and is named once."""
    mesh = Mesh()
    mesh.join("a")
    model = version(0, Scaling(min_copies=1))
    key = (model.name, model.version)
    mesh.add_model(model)
    before = Placement(*key, (NodeId("a"),), requested_s=mesh.now_s + 3600)
    failed = Copy(*key, CopyState.FAILED, requested_s=before.requested_s, digest="d", failures=1, pause_s=10.0)
    mesh.change(PlacementChange(key, before), CopyChange(NodeId("a"), key, failed))
    begun_s = mesh.now_s
    assert Pass(mesh.view, Demand(), now_s=mesh.now_s, begun_s=begun_s).duties() == []
    mesh.change(CopyChange(NodeId("a"), key, replace(failed, pause_s=0.0)))
    (duty,) = Pass(mesh.view, Demand(), now_s=mesh.now_s, begun_s=begun_s).duties()
    assert duty.after.nodes == ("a",)
    assert duty.after.requested_s > before.requested_s
