"""The sessions that go through this router: where each is, what is kept of it, and what happens when its node goes.

`mesh.core.sessions.session` decides; this file places, sends and waits. A stream carries its own steps (`Carrier`);
what no stream can carry at once goes as single calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mesh.api.messages import ModelInferResponse
from mesh.api.session import split_request, split_response, with_state
from mesh.api.stream import final_message
from mesh.core.errors import Code, MeshError, RemoteError, SessionLost, UnknownSequence
from mesh.core.sessions.session import Entry, Place, Send
from mesh.core.traffic.retry import Fate
from mesh.core.view import Located
from mesh.registry.mirror import Mirror
from mesh.router.ends import copy_age_told, fate_told
from mesh.router.live import Carrier, Live, Said, Single, Step, said_of
from mesh.router.session_table import SessionTable
from mesh.router.session_trace import traced
from mesh.router.spill import Spill
from mesh.router.strays import Strays, take
from mesh.router.target import Target
from mesh.wire.grpc_framing import framed
from mesh.wire.peek import Peeked
from mesh.wire.transport import ABSENT, CALLER_HEADER, NOT_RUN_TRAILER, Call, Metadata

if TYPE_CHECKING:
    from mesh.router.dispatch import Dispatch

ATTEMPTS: Final = 5
"""How often a step is sent before its session is given up."""


class Sessions:
    """The sessions of one router, within `max_bytes` of what is kept."""

    def __init__(self, mirror: Mirror, dispatch: Dispatch, *, max_bytes: int) -> None:
        self._mirror = mirror
        self.dispatch = dispatch
        self.spill = Spill(lambda: mirror.view, dispatch.channels, dispatch.balancer, max_bytes=max_bytes)
        self.spill.on_lost = lambda live: self._brought(live, None)
        self.table = SessionTable(max_bytes, self.spill)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._strays = Strays(mirror, dispatch.balancer, dispatch.channels, self.table.get)

    def begin(  # noqa: PLR0917 - what a request said, and whose it is
        self, target: Target, said: Said, version: str, message: bytes, step: Step, carrier: Carrier
    ) -> tuple[Live, Entry[Step]] | None:
        """Take a step of a session; `step` hears how it ended. Raises `MeshError` for one that makes no sense.

        `version` is what the request names, empty for whichever.
        Returns what `left` takes; None when it is answered already.
        """
        if said.forgets:
            live = self.table.begun(target.model.name, said.id)
            ends = live is not None and version in {"", live.key[1]}
            self._let_go(live if ends else None, target, step, carrier)
            return None
        live = self.table.again(target, said.id)
        if live is None:
            if not version and not said.start:
                target = self.table.begun_with(target, said.id, self.dispatch.targets)
            key = (str(target.model.name), str(target.model.version), said.id)
            live = self.table.used(key, target, time.monotonic())
        core = live.core
        if said.resumes:
            message, state = split_request(message)
            if state:
                for each in core.restore(state):
                    told = f"sequence {said.id} was taken over by a client that came back with its state"
                    each.fail(SessionLost(told))
        if core.gone and not said.start:
            raise live.lost()
        if self.dispatch.tracing.on:
            step = traced(self.dispatch.tracing, live, step, carrier.call)
        entry = core.asked(step, message, carrier, start=said.start, end=said.end)
        if live.serving is target.candidates and not live.busy and not live.alone and live.located is not None:
            # What nearly always is: nothing changed since its last step, and that was answered.
            send = core.send_now(entry)
            if send is not None:
                # It is counted with its answer.
                if not carrier.carry(live, live.located, send):
                    live.alone = True
                    self._start(self._call(live, live.located, send, carrier.call))
                return live, entry
        self.table.counted(live)
        self._pump(live)
        return live, entry

    def _let_go(self, live: Live | None, target: Target, step: Step, carrier: Carrier) -> None:
        """End a session without another step."""
        if live is not None and live.located is not None and not live.busy and not live.core.entries:
            live.busy = True
            self._start(self._end_at_node(live))
        response = ModelInferResponse(model_name=target.model.name, model_version=target.model.version)
        answer = response.SerializeToString()
        step.answer(framed(final_message(answer)) if carrier.pipelined else answer, b"")

    def left(self, live: Live, entry: Entry[Step]) -> None:
        """Hear that nobody waits for a step any more."""
        live.core.left(entry)
        self.table.counted(live)
        self._pump(live)

    def answered(self, live: Live, send: Send[Step], response: bytes, state: bytes) -> None:
        """Take a node's answer to a step."""
        step = send.entry.step
        live.answered_s = time.monotonic()
        current = live.core.answered(send, state or None, failed=False)
        self.table.counted(live)
        if current and step is not None:
            step.answer(response, state)
        if live.tried:
            live.tried.clear()
        if live.core.entries or live.core.snapshot is None or live.core.leaving:
            self._pump(live)

    def failed(
        self,
        live: Live,
        send: Send[Step],
        error: RemoteError,
        *,
        absent: bool = False,
        fate: Fate = Fate.ANSWERED,
        copy_age_s: float | None = None,
    ) -> None:
        """Take a failure: of the node (`error.transport_failed`), of the copy (`absent`), or of the step."""
        core, entry = live.core, send.entry
        if send.epoch != core.epoch or not entry.awaited:
            return
        if error.transport_failed or fate is Fate.DIED or absent or entry.step is None:
            if (fate is Fate.DIED and live.ended(self.dispatch.retries)) or entry.attempts >= ATTEMPTS:
                self._give_up(live, error)
            elif error.unsent and core.whole:
                if not core.fresh:
                    live.failed_over()
                self._strays.left(live)
                core.elsewhere()
                self._pump(live)
            elif absent and (live.ended_there(copy_age_s) or not (core.whole and core.replayable)):
                self._elsewhere(live, error)
            else:
                self._lost(live, error)
            return
        step = entry.step
        if error.status in {Code.DEADLINE_EXCEEDED, Code.CANCELLED}:
            # It may have run or not.
            core.left(entry)
        else:
            core.answered(send, None, failed=True)
        self.table.counted(live)
        step.fail(error)
        self._pump(live)

    def may_move(self, live: Live, send: Send[Step], long: bool = False) -> bool:  # noqa: FBT002 - a `Leaves`
        """Tell whether a session whose node does not answer goes to another copy, by the rules of one that died."""
        core, located = live.core, live.located
        if send.epoch != core.epoch or located is None or send.entry.attempts >= ATTEMPTS:
            return False
        most = self.dispatch.retries.most_deaths(live.model)
        return core.may_move(most) and self.dispatch.stalled.has_other(located.node, live.version)

    async def answer(self, call: Call, message: bytes, request: Peeked, target: Target) -> bytes:
        """Answer a step that came as a single call. Raises a `MeshError`."""
        said = said_of(request)
        one = Single(call, wants_state=said.wants_state)
        begun = self.begin(target, said, request.model_version, message, one, one)
        try:
            return await one.future
        finally:
            if begun is not None:
                self.left(*begun)

    def moved(self) -> None:
        """Look at a new view: sessions whose copy goes are moved. O(versions with sessions) while nothing changes."""
        for live in self.table.moved(self._mirror.view):
            self._pump(live)
        leaving = self.spill.moved(self._mirror.view)
        if leaving:
            self._start(self._bring_all_back(leaving))

    async def close(self) -> None:
        """Give up what is waited for."""
        self.table.close()
        self._strays.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- one session ---------------------------------------------------------------------------------------------

    def _pump(self, live: Live) -> None:
        """Do what is to be done next, as far as nothing has to be waited for."""
        core = live.core
        if live.busy or live.alone:
            return
        if core.place is not None and (core.leaving or not self._serves(live)):
            core.leave()
            if core.wants_state:
                live.busy = True
                self._start(self._fetch(live))
                return
        if core.wants_snapshot:
            live.busy = True
            self._start(self._bring_back(live, waits=True))
            return
        if core.wants_place and not self._place(live):
            live.busy = True
            self._start(self._wait_for_place(live))
            return
        first = next((each for each in core.entries if not each.sent), None)
        if first is None or core.place is None:
            if core.over:
                self.table.forget(live)
            return
        carrier, located = first.owner, live.located
        assert located is not None
        for send in core.ready(pipelined=carrier.pipelined):  # type: ignore[attr-defined] # owners are carriers
            owner: Any = send.entry.owner
            if not owner.carry(live, located, send):
                live.alone = True
                self._start(self._call(live, located, send, owner.call))
                return

    def _serves(self, live: Live) -> bool:
        """Tell whether the copy that the session is on still takes requests, of this process of its node."""
        place = live.core.place
        live.serving = self._mirror.view.serving.get(live.version, ())
        for each in live.serving:
            if (each.node.id, each.node.incarnation) == place:
                live.located = each
                if not each.node.draining:
                    return True
        live.serving = None
        return False

    def _place(self, live: Live) -> bool:
        """Give a session a place where that is possible at once."""
        candidates = self._mirror.view.serving.get(live.version, ())
        balancer, now_s = self.dispatch.balancer, time.monotonic()
        located = balancer.pin(candidates, str(live.key[2]), tried=live.tried, now_s=now_s)
        if located is None:
            return False
        live.located, live.serving, live.answered_s = located, candidates, None
        place: Place = (located.node.id, located.node.incarnation)
        live.core.placed(place)
        return True

    async def _wait_for_place(self, live: Live) -> None:
        """Wait for a copy as long as the caller of the first step cares to; the others' turn comes after."""
        owner: Any = live.core.entries[0].owner if live.core.entries else None
        try:
            if owner is not None:
                await self.dispatch.pick(owner.call, live.model, str(live.key[2]), [])
        except MeshError as error:
            live.busy = False
            self._refuse_all(live, error, owner)
        except BaseException:
            live.busy = False
            raise
        else:
            live.busy = False
            live.tried.clear()
        self._pump(live)

    async def _fetch(self, live: Live) -> None:
        """Move the state itself, where what is kept would have to run again."""
        try:
            state = await take(self.dispatch.channels, live.located, live.key)
        finally:
            live.busy = False
        ended = live.core.fetched(state)
        self.table.counted(live)
        self._end(live, ended, "the node that held it is gone")
        self._pump(live)

    async def _bring_back(self, live: Live, *, waits: bool = False) -> None:
        """Fetch a snapshot that another node keeps: `waits` says whether a step waits for it."""
        kept = live.kept
        try:
            snapshot = await self.spill.back(kept) if kept is not None else None
        finally:
            live.busy = live.busy and not waits
        if live.kept is kept:  # Else a later state came meanwhile, or went to another node.
            self._brought(live, snapshot)
        self._pump(live)

    async def _bring_all_back(self, leaving: list[Live]) -> None:
        """Fetch what a leaving node keeps, one after the other: there was no room for all of it."""
        for live in leaving:
            if live.kept is not None and not live.busy:
                await self._bring_back(live)

    def _brought(self, live: Live, snapshot: bytes | None) -> None:
        if not live.core.away:
            return
        ended = live.core.brought(snapshot)
        if live.kept is not None:
            live.kept.snapshot = snapshot
        live.totals.lost += bool(ended) or live.core.gone
        self.table.counted(live)
        self._end(live, ended, "the node that held it and the one that kept its last state are gone")

    async def _end_at_node(self, live: Live) -> None:
        try:
            await take(self.dispatch.channels, live.located, live.key)
        finally:
            live.busy = False
        live.core.forgotten()
        self.table.counted(live)
        self._pump(live)

    async def _call(self, live: Live, located: Located, send: Send[Step], call: Call) -> None:
        """Send one step as a call of its own."""
        message, dispatch = with_state(send.entry.message, send.restore), self.dispatch
        metadata: Metadata = (*dispatch.metadata(call, live.model, None, forwards=False), (CALLER_HEADER, call.peer))
        try:
            reply = await dispatch.send(call, located, message, metadata, leaves=partial(self.may_move, live, send))
        except RemoteError as error:
            live.alone = False
            dispatch.metrics.attempt_failed(located.node.id, error.status.name)
            absent, age_s = (NOT_RUN_TRAILER, ABSENT) in error.trailers, copy_age_told(error)
            self.failed(live, send, error, absent=absent, fate=fate_told(error), copy_age_s=age_s)
        except MeshError as error:
            live.alone = False
            self.failed(live, send, RemoteError(Code.DEADLINE_EXCEEDED, error.message))
        except BaseException:
            live.alone = False
            raise
        else:
            live.alone = False
            response, state = split_response(reply.message)
            owner: Any = send.entry.owner
            if owner.pipelined:
                response = framed(final_message(response))
            self.answered(live, send, response, state)

    def _lost(self, live: Live, error: RemoteError) -> None:
        self._strays.left(live)
        ended = live.core.lost()
        self.table.counted(live)
        live.failed_over()
        live.totals.lost += bool(ended) or live.core.gone
        self._end(live, ended, error.message)
        self._pump(live)

    def _elsewhere(self, live: Live, error: RemoteError) -> None:
        """Ask the next copy for a session that was begun elsewhere; refuse when all were asked."""
        assert live.located is not None
        live.tried.append(live.located.node.id)
        live.core.elsewhere()
        candidates = self._mirror.view.serving.get(live.version, ())
        if all(each.node.id in live.tried for each in candidates):
            live.tried.clear()
            unknown = error.status is Code.INVALID_ARGUMENT
            self._refuse_all(live, UnknownSequence(error.message) if unknown else error)
        self._pump(live)

    def _give_up(self, live: Live, error: RemoteError) -> None:
        core = live.core
        core.whole = False
        ended = core.lost()
        self._end(live, ended, f"it could not be brought to another node ({error.message})")
        self._refuse_all(live, error)
        self.table.forget(live)

    def _refuse_all(self, live: Live, error: MeshError, owner: object = None) -> None:
        """Fail every step that waits, or those of one owner."""
        for entry in list(live.core.entries):
            if owner is not None and entry.owner is not owner:
                continue
            step = entry.step
            live.core.left(entry)
            if step is not None:
                step.fail(error)
        if not live.core.entries and not live.core.snapshot and not live.core.away:
            self.table.forget(live)

    def _end(self, live: Live, ended: list[Step], why: str) -> None:
        """Fail steps whose state is gone."""
        for step in ended:
            step.fail(live.lost(why))

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Sessions {self.table!r}>"
