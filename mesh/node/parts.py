"""This node's share of requests that run on several nodes: notes from routers and other nodes in, notes to them out.

A router first agrees with every node of a cut on a plan (which step runs where). After that a request is a few one-way
notes: the router's with the inputs to whoever needs them, one for each step's tensors that another place wants, sent
straight there, and the last ones back to the router. A node that cannot go on tells the router, which alone decides
what becomes of the request. A router that is gone takes its requests with it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Final

from mesh.api.messages import notes
from mesh.api.notes import RunInfo, failed_note, read_ended, read_note, read_run
from mesh.core.errors import InvalidRequest, MeshError, NotHere, code_of
from mesh.core.pipeline.cut import ROUTER, shares
from mesh.core.types import NodeId
from mesh.core.view import ClusterView
from mesh.node.graph import PipelineRuns
from mesh.node.part import Part, Planned, QuickPart
from mesh.registry.mirror import Mirror
from mesh.telemetry import logs
from mesh.wire.post import Outbox, Post
from mesh.wire.transport import PARTS_EXCHANGE, Call, Channel, at_once

log = logs.get(__name__)

AGREE_S: Final = 2.0
"""How long a plan waits for a revision that the registry has told the router of and not this node yet."""
MAX_PLANS: Final = 1024
"""Plans kept per router, the latest used."""
MAX_GIVEN_UP: Final = 4096
"""Requests remembered per router after they were given up: notes of other nodes may still be on their way."""


class _RouterPeer:
    """One router that is connected: what it planned, and what runs for it."""

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.outbox = Outbox()
        self.plans: OrderedDict[int, Planned] = OrderedDict()
        self.running: dict[int, Part | QuickPart] = {}
        self.given_up: OrderedDict[int, None] = OrderedDict()


class Parts:
    """Everything that goes on here for requests that run on several nodes. One per node process."""

    def __init__(self, me: NodeId, *, mirror: Mirror, runs: PipelineRuns, connect: Callable[[str], Channel]) -> None:
        self.me = me
        self._mirror = mirror
        self.runs = runs
        self._connect = connect
        self._routers: dict[str, _RouterPeer] = {}
        self._posts: dict[NodeId, _Neighbour] = {}
        self._open: set[Outbox] = set()
        """One for each stream that others opened to this node."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Requests that have a part here now."""
        return sum(len(router.running) for router in self._routers.values())

    async def exchange(self, call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Answer one stream of a router or of another node. Raises `InvalidRequest` for a peer that makes no sense."""
        first = await anext(aiter(messages), None)
        hello = read_note(first).hello if first is not None else notes.Hello()
        if not hello.router and not hello.node:
            raise InvalidRequest("expected a Hello with a router or a node as the first note of a stream")
        router = self._meet(hello.router) if hello.router else None
        outbox = router.outbox if router is not None else Outbox()
        self._open.add(outbox)
        reading = asyncio.create_task(self._read(router, outbox, messages))
        try:
            async for note in outbox:
                yield note
                del note
            if reading.done():
                reading.result()
        finally:
            reading.cancel()
            self._open.discard(outbox)
            if router is not None:
                self._leave(router)

    def _meet(self, id_: str) -> _RouterPeer:
        if id_ in self._routers:
            self._leave(self._routers[id_])
        router = self._routers[id_] = _RouterPeer(id_)
        return router

    async def _read(self, router: _RouterPeer | None, outbox: Outbox, messages: AsyncIterator[bytes]) -> None:
        """Hear a router, or None: another node."""
        try:
            async for data in messages:
                if router is not None:
                    self._hear_router(router, read_note(data))
                else:
                    self._hear_node(read_note(data))
                del data
        finally:
            outbox.close()

    def _leave(self, router: _RouterPeer) -> None:
        """Forget a router: nobody hears what its requests come to."""
        router.outbox.close()
        for part in list(router.running.values()):
            part.withdraw(asyncio.CancelledError())
        router.running.clear()
        if self._routers.get(router.id) is router:
            del self._routers[router.id]
        self.quiet()

    # -- what is heard -------------------------------------------------------------------------------------------

    def _hear_router(self, router: _RouterPeer, note: notes.Note) -> None:
        kind = note.WhichOneof("kind")
        if kind == "ended":
            self._ended(router, note.ended)
        elif kind == "plan":
            task = asyncio.create_task(self._agree(router, note.plan))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif kind == "give_up":
            part = router.running.get(note.give_up.run)
            if part is not None:
                part.withdraw(asyncio.CancelledError())
            self.over(router, note.give_up.run, given_up=True)

    def _hear_node(self, note: notes.Note) -> None:
        if note.WhichOneof("kind") == "ended":
            router = self._routers.get(note.ended.run.router)
            # A router that is not connected here has lost this node, and knows what that means for its requests.
            if router is not None:
                self._ended(router, note.ended)

    async def _agree(self, router: _RouterPeer, said: notes.Plan) -> None:
        problem = ""
        try:
            planned = await self._plan(said)
            router.plans[said.id] = planned
            if len(router.plans) > MAX_PLANS:
                router.plans.popitem(last=False)
        except MeshError as error:
            problem = error.message
        router.outbox.post(notes.Note(agreed=notes.Agreed(plan=said.id, problem=problem)).SerializeToString())

    async def _plan(self, said: notes.Plan) -> Planned:
        def known(view: ClusterView) -> bool:
            pipeline = view.pipelines.get(said.pipeline)
            return pipeline is not None and pipeline.revision >= said.revision

        try:
            async with asyncio.timeout(AGREE_S):
                view = await self._mirror.wait_for(known)
        except TimeoutError:
            raise NotHere(f"pipeline '{said.pipeline}' revision {said.revision} is not known here") from None
        pipeline = view.pipelines[said.pipeline]
        if pipeline.revision != said.revision:
            raise NotHere(f"pipeline '{said.pipeline}' is at revision {pipeline.revision}, not {said.revision}")
        try:
            graph, places = self.runs.graphs.of(pipeline, said.path), dict(said.places)
        except KeyError:
            raise InvalidRequest(f"expected a half of pipeline '{said.pipeline}', got '{said.path}'") from None
        if places.keys() != graph.steps.keys():
            raise InvalidRequest(f"expected a place for each step of '{said.pipeline}', got {sorted(places)}")
        share = shares(graph, places).get(self.me)
        if share is None:
            raise InvalidRequest(f"no step of this plan runs on node '{self.me}'")
        return Planned(graph, share)

    def _ended(self, router: _RouterPeer, said: notes.StepEnded) -> None:
        """Take how a step ended elsewhere, as the first of its request perhaps."""
        run = read_run(said.run)
        if run.said.id in router.given_up:
            return
        part = router.running.get(run.said.id)
        try:
            if part is None:
                part = self._begin(router, run)
            part.hear(said.step, read_ended(said))
        except MeshError as error:
            if part is not None:
                part.withdraw(asyncio.CancelledError())
            self.fail(router, run.said.id, "", error)

    def _begin(self, router: _RouterPeer, run: RunInfo) -> Part | QuickPart:
        """Return the part of a request that is new here. Raises `NotHere` when a plan or a copy is gone."""
        planned = router.plans.get(run.said.plan)
        if planned is None:
            raise NotHere(f"plan {run.said.plan} is not known to node '{self.me}' (any more)")
        router.plans.move_to_end(run.said.plan)
        part = planned.begin(_Line(self, router, run.said.id), run, self._mirror.view, self.runs)
        router.running[run.said.id] = part
        self._idle.clear()
        return part

    # -- what is told --------------------------------------------------------------------------------------------

    def to(self, place: str, router: _RouterPeer, note: bytes) -> None:
        """Post a note to another place of a request of `router`."""
        if place == ROUTER:
            router.outbox.post(note)
            return
        node = NodeId(place)
        neighbour = self._posts.get(node)
        if neighbour is None or not neighbour.post.is_open:
            known = self._mirror.view.nodes.get(node)
            if known is None:
                self._lost(node, "it left the mesh")
                return
            neighbour = self._posts[node] = _Neighbour(self, node, self._connect(known.address))
        neighbour.post.post(note)

    def ended_post(self, neighbour: _Neighbour, error: MeshError | None) -> None:
        """Hear that the stream to another node is over."""
        if self._posts.get(neighbour.node) is neighbour:
            del self._posts[neighbour.node]
        if error is not None:
            self._lost(neighbour.node, error.message)

    def _lost(self, node: NodeId, why: str) -> None:
        """Tell every router: what was on its way to `node` may be lost."""
        note = notes.Note(lost=notes.Lost(node=node, why=why)).SerializeToString()
        for router in self._routers.values():
            router.outbox.post(note)

    def fail(self, router: _RouterPeer, run: int, step: str, error: Exception) -> None:
        """Tell the router that a request failed with a step, an empty one: with what came from elsewhere."""
        self.over(router, run, given_up=True)
        not_run = isinstance(error, MeshError) and error.retry_safe
        died = isinstance(error, MeshError) and error.died
        text = error.message if isinstance(error, MeshError) else f"{type(error).__name__}: {error}"
        router.outbox.post(failed_note(run, step, code_of(error), text, not_run=not_run, died=died))

    def over(self, router: _RouterPeer, run: int, *, given_up: bool = False) -> None:
        """Forget a request that is done here. When it was given up, notes of other nodes may still come for it."""
        router.running.pop(run, None)
        if given_up:
            router.given_up[run] = None
            if len(router.given_up) > MAX_GIVEN_UP:
                router.given_up.popitem(last=False)
        self.quiet()

    def quiet(self) -> None:
        """Note whether anything is left to do."""
        if not self.running:
            self._idle.set()

    async def close(self, grace_s: float) -> None:
        """Wait at most `grace_s` seconds for what runs, then end every stream."""
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("parts of requests were cut off", running=self.running)
        for outbox in tuple(self._open):
            outbox.close()
        for neighbour in list(self._posts.values()):
            await neighbour.close()
        for task in self._tasks:
            task.cancel()

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Parts {self.me} routers={len(self._routers)} running={self.running} to={sorted(self._posts)}>"


class _Neighbour:
    """The stream to another node."""

    def __init__(self, parts: Parts, node: NodeId, channel: Channel) -> None:
        self.node = node
        self._parts = parts
        self._channel = channel
        self.post = Post(
            channel.stream(PARTS_EXCHANGE, metadata=(), timeout_s=None, leaves=at_once), _ignored, self._ended
        )
        self.post.post(notes.Note(hello=notes.Hello(node=parts.me)).SerializeToString())
        self._closing: asyncio.Task[None] | None = None

    def _ended(self, error: MeshError | None) -> None:
        self._parts.ended_post(self, error)
        self._closing = asyncio.create_task(self._channel.close(0))

    async def close(self) -> None:
        """Give it up."""
        await self.post.close()
        if self._closing is not None:
            await self._closing


class _Line:
    """The ways out of one request of a router."""

    __slots__ = ("_parts", "_router", "_run")

    def __init__(self, parts: Parts, router: _RouterPeer, run: int) -> None:
        self._parts = parts
        self._router = router
        self._run = run

    def to(self, place: str, note: bytes) -> None:
        """Post a note to another place of it."""
        self._parts.to(place, self._router, note)

    def failed(self, step: str, error: Exception) -> None:
        """Tell the router that it failed."""
        self._parts.fail(self._router, self._run, step, error)

    def over(self) -> None:
        """Forget it."""
        self._parts.over(self._router, self._run)


def _ignored(note: bytes) -> None:
    """Take nothing: a node tells routers, not its neighbours."""
