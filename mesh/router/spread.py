"""Requests for pipelines whose models no node holds all of: cut into parts, and the router's end of their notes.

`mesh.core.pipeline.cut` says which cuts are good, `mesh.node.parts` is the other end. A node is asked whether it takes
part once per plan, not once per request. What the nodes cannot run is the router's own part (`pipelines`).
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from mesh.api.carried import Carried
from mesh.api.messages import notes
from mesh.api.notes import RunInfo, ended_note, read_ended, read_failed, read_note
from mesh.core.errors import Code, MeshError, RemoteError
from mesh.core.pipeline.cut import ROUTER
from mesh.core.pipeline.run import Graph
from mesh.core.traffic.balance import Balancer
from mesh.core.traffic.retry import Fate, fate_of
from mesh.core.types import NodeId
from mesh.registry.mirror import Mirror
from mesh.router.channels import Channels
from mesh.router.plans import Plan, Plans
from mesh.wire.post import Post
from mesh.wire.transport import PARTS_EXCHANGE

AGREE_S: Final = 5.0
"""How long a node may take to agree to a plan: longer than it waits for its registry."""
REFUSED_S: Final = 1.0
"""How long a refused plan is not tried again: views meet within that."""


@dataclass(slots=True)
class Ended:
    """A step ended elsewhere; None: it was skipped."""

    step: str
    outputs: Mapping[str, Carried] | None


@dataclass(slots=True)
class Broke:
    """A place cannot go on."""

    step: str
    """Empty: the place as a whole."""
    node: NodeId
    error: MeshError
    fate: Fate
    """Another cut may end better where the node went away or did not run it."""


Event = Ended | Broke


class Spread:
    """The streams to nodes that run parts of requests, and the requests. One per router process."""

    def __init__(self, mirror: Mirror, balancer: Balancer, channels: Channels) -> None:
        self._mirror = mirror
        self._balancer = balancer
        self._channels = channels
        self._id = secrets.token_hex(8)
        self._run_ids = itertools.count(1)
        self.plans = Plans(mirror, balancer)
        self._peers: dict[NodeId, _Peer] = {}
        self._runs: dict[int, Away] = {}

    # -- plans ---------------------------------------------------------------------------------------------------

    async def choose(self, graph: Graph, without: Sequence[NodeId], deadline_s: float | None) -> Plan:
        """Return a plan that all its nodes agreed to, of the good ones the one with the least to do.

        Where no such plan is, the router runs every step.
        """
        found = self.plans.best(graph, without)
        now_s = time.monotonic()
        usable = [plan for plan in found if not plan.refused or now_s - plan.refused_at_s > REFUSED_S]
        for plan in sorted(usable, key=self._load):
            if self._agreed(plan) or await self._agree(plan, deadline_s):
                return plan
        return self.plans.router_alone(graph)

    def plain(self, graph: Graph) -> Plan | None:
        """Return a plan that nodes run all of and that they have agreed to; None when there is none at once."""
        plans = self.plans.best(graph)
        plan = plans[0] if len(plans) == 1 else min(plans, key=self._load)
        if plan.refused or plan.shares[ROUTER].mine or not plan.nodes:
            return None
        return plan if self._agreed(plan) else None

    def _load(self, plan: Plan) -> int:
        return sum(self._balancer.outstanding(node) for node in plan.nodes)

    def _agreed(self, plan: Plan) -> bool:
        for node in plan.nodes:
            peer = self._peers.get(node)
            if peer is None or plan.id not in peer.agreed or not peer.post.is_open:
                return False
        return True

    async def _agree(self, plan: Plan, deadline_s: float | None) -> bool:
        """Ask all nodes of a plan; False when one refuses, is not there, or does not answer in time."""
        until_s = time.monotonic() + AGREE_S
        try:
            async with asyncio.timeout_at(until_s if deadline_s is None else min(until_s, deadline_s)):
                problems = await asyncio.gather(*(self._peer(node).ask(plan) for node in plan.nodes))
            plan.refused = next((problem for problem in problems if problem), "")
        except TimeoutError:
            plan.refused = "a node did not answer"
        except MeshError as error:
            plan.refused = error.message
        plan.refused_at_s = time.monotonic()
        return not plan.refused

    def _peer(self, node: NodeId) -> _Peer:
        """Return the stream to a node, opened if need be. Raises `RemoteError` for one that left."""
        known = self._mirror.view.nodes.get(node)
        peer = self._peers.get(node)
        if known is None:
            raise RemoteError(Code.UNAVAILABLE, f"node '{node}' left the mesh", transport_failed=True)
        if peer is None or not peer.post.is_open:
            channel = self._channels.to(known.address)
            leaves = partial(self._leaves, node)
            stream = channel.stream(PARTS_EXCHANGE, metadata=(), timeout_s=None, leaves=leaves)
            peer = self._peers[node] = _Peer(self, node, self._id, lambda hear, end: Post(stream, hear, end))
        return peer

    def _leaves(self, node: NodeId, long: bool) -> bool:
        """Tell whether other nodes can run what waits for one that does not answer."""
        del long
        for away in self._runs.values():
            if node in away.plan.nodes:
                others = self.plans.holders(away.plan.graph)
                if not all(others[step] - {node} for step, place in away.plan.places.items() if place == node):
                    return False
        return True

    # -- requests ------------------------------------------------------------------------------------------------

    def begin(self, plan: Plan, given: Mapping[str, Carried], run: RunInfo) -> Away:
        """Begin a request at the nodes of a plan that they agreed to."""
        said = run.said
        said.router, said.id, said.plan = self._id, next(self._run_ids), plan.id
        away = Away(self, plan, run)
        self._runs[said.id] = away
        for node in plan.nodes:
            self._balancer.picked(node)
            share = plan.shares[node]
            if share.inputs or not share.takes:
                tensors = {name: given[name] for name in share.inputs if name in given}
                away.post(node, ended_note(away.run, "", tensors))
        return away

    def post(self, node: NodeId, note: bytes) -> bool:
        """Send a note to a node; False when its stream is over."""
        peer = self._peers.get(node)
        if peer is None or not peer.post.is_open:
            return False
        peer.post.post(note)
        return True

    def end(self, away: Away) -> None:
        """Forget a request."""
        self._runs.pop(away.run.said.id, None)
        for node in away.plan.nodes:
            self._balancer.done(node, None)

    # -- what is heard -------------------------------------------------------------------------------------------

    def hear(self, node: NodeId, note: notes.Note) -> None:
        """Take a note about a request, or about a node that another cannot reach."""
        kind = note.WhichOneof("kind")
        if kind == "ended":
            away = self._runs.get(note.ended.run.id)
            if away is not None:
                away.heard(Ended(note.ended.step, read_ended(note.ended)))
        elif kind == "failed":
            away = self._runs.get(note.failed.run)
            if away is not None:
                if note.failed.not_run and not note.failed.step and node in self._peers:
                    # A plan that the node forgot, or a copy that went: the next request asks again.
                    self._peers[node].agreed.discard(away.plan.id)
                error = read_failed(note.failed)
                fate = fate_of(error, not_run=note.failed.not_run, died=note.failed.died)
                away.heard(Broke(note.failed.step, node, error, fate))
        elif kind == "lost":
            why = f"node '{node}' lost its connection to node '{note.lost.node}' ({note.lost.why})"
            self._broken({node, NodeId(note.lost.node)}, NodeId(note.lost.node), why)

    def gone(self, peer: _Peer, error: MeshError | None) -> None:
        """Hear that the stream to a node is over."""
        if self._peers.get(peer.node) is peer:
            del self._peers[peer.node]
        known = self._mirror.view.nodes.get(peer.node)
        if known is not None and isinstance(error, RemoteError) and error.transport_failed:
            self._balancer.failed(known, time.monotonic())
        self._broken({peer.node}, peer.node, f"node '{peer.node}' went away ({error.message if error else 'closed'})")

    def _broken(self, among: set[NodeId], lost: NodeId, why: str) -> None:
        """End every request that all of these nodes are part of."""
        for away in list(self._runs.values()):
            if among <= set(away.plan.nodes):
                steps = [step for step, place in away.plan.places.items() if place == lost]
                waiting = [step for step in steps if step not in away.ended]
                told = RemoteError(Code.UNAVAILABLE, f"{why}; call again", transport_failed=True)
                away.heard(Broke((waiting or steps)[0], lost, told, Fate.DIED))

    async def close(self) -> None:
        """Give up every stream."""
        for peer in list(self._peers.values()):
            await peer.post.close()

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Spread {self.plans!r} nodes={sorted(self._peers)} running={len(self._runs)}>"


class _Peer:
    """The stream to one node, and the plans that it agreed to."""

    def __init__(
        self,
        spread: Spread,
        node: NodeId,
        router: str,
        open_: Callable[[Callable[[bytes], None], Callable[[MeshError | None], None]], Post],
    ) -> None:
        self.node = node
        self.agreed: set[int] = set()
        self._spread = spread
        self._asked: dict[int, asyncio.Future[str]] = {}
        self.post = open_(self._hear, self._ended)
        self.post.post(notes.Note(hello=notes.Hello(router=router)).SerializeToString())

    async def ask(self, plan: Plan) -> str:
        """Return why the node does not take part in a plan, empty when it does. Raises `MeshError`."""
        if plan.id in self.agreed:
            return ""
        answer = self._asked.get(plan.id)
        if answer is None:
            answer = self._asked[plan.id] = asyncio.get_running_loop().create_future()
            pipeline = plan.graph.pipeline
            said = notes.Plan(
                id=plan.id,
                pipeline=pipeline.name,
                revision=pipeline.revision,
                places=dict(plan.places),
                path=plan.graph.path,
            )
            self.post.post(notes.Note(plan=said).SerializeToString())
        return await asyncio.shield(answer)

    def _hear(self, data: bytes) -> None:
        note = read_note(data)
        if note.WhichOneof("kind") != "agreed":
            self._spread.hear(self.node, note)
            return
        if not note.agreed.problem:
            self.agreed.add(note.agreed.plan)
        answer = self._asked.pop(note.agreed.plan, None)
        if answer is not None and not answer.done():
            answer.set_result(note.agreed.problem)

    def _ended(self, error: MeshError | None) -> None:
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(f"node '{self.node}' went away")
        self._spread.gone(self, error)


@dataclass(eq=False, slots=True)
class Away:
    """What of one request is at nodes: a queue of what comes back. `close` it when the request is over."""

    spread: Spread
    plan: Plan
    run: RunInfo
    ended: set[str] = field(default_factory=set)
    """The steps that this router heard of."""
    on_event: Callable[[Event], None] | None = None
    _early: list[Event] = field(default_factory=list)

    def listen(self, on_event: Callable[[Event], None]) -> None:
        """Hand over what came, and what will come."""
        self.on_event = on_event
        for event in self._early:
            on_event(event)

    def heard(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, Ended):
            self.ended.add(event.step)
        if self.on_event is None:
            self._early.append(event)
        else:
            self.on_event(event)

    def post(self, node: NodeId, note: bytes) -> None:
        """Send a note to a node of the plan; one whose stream is over is an event."""
        if not self.spread.post(node, note):
            error = RemoteError(Code.UNAVAILABLE, f"node '{node}' went away; call again", transport_failed=True)
            self.heard(Broke("", node, error, Fate.DIED))

    def tell(self, step: str, outputs: Mapping[str, Carried] | None) -> None:
        """Send to each node what it wants of a step that the router ran."""
        for place, wanted in self.plan.shares[ROUTER].gives[step].items():
            tensors = None if outputs is None else {name: outputs[name] for name in wanted}
            self.post(NodeId(place), ended_note(self.run, step, tensors))

    def close(self, *, answered: bool) -> None:
        """Forget the request, and let the nodes forget it unless each is done by itself."""
        self.spread.end(self)
        if not answered or self.plan.may_leave:
            note = notes.Note(give_up=notes.GiveUp(run=self.run.said.id)).SerializeToString()
            for node in self.plan.nodes:
                self.spread.post(node, note)
