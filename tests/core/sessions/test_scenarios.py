"""Every file in tests/scenarios/sessions: what happens to a session on a router, or to the sequences of a copy."""

from __future__ import annotations

from pathlib import Path
from sys import intern
from typing import Any

import pytest
import yaml

from mesh.core.batching import Waiting, WaitUntil, enough_rows
from mesh.core.errors import MeshError
from mesh.core.sessions.schedule import Schedule, Sequence, Step
from mesh.core.sessions.session import Send, Session
from mesh.core.types import NodeId

FILES = sorted((Path(__file__).parents[2] / "scenarios" / "sessions").glob("*.yaml"))


class Router:
    """A session; steps are numbers, states are words, every message has ten bytes."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.session: Session[str] = Session(said.get("max_bytes", 1000), said.get("replayable", True))
        self.pipelined = said.get("pipelined", True)
        self.sent: dict[str, Send[str]] = {}
        self.entries: dict[str, Any] = {}

    def do(self, words: list[str]) -> list[str]:  # noqa: PLR0912 - a case for each word
        session, told = self.session, []
        match words:
            case ["ask", number, *flags]:
                stream = intern(next((flag for flag in flags if flag.startswith("stream")), "stream-1"))
                start, end = "start" in flags, "end" in flags
                self.entries[number] = session.asked(number, number.rjust(10).encode(), stream, start=start, end=end)
            case ["place", node]:
                session.placed((NodeId(node), "1"))
            case ["answer", number, *state]:
                told_state = state[1].encode() if state else None
                taken = session.answered(self.sent[number], told_state, failed=False)
                told += [] if taken else ["ignored"]
            case ["fail", number]:
                session.answered(self.sent[number], None, failed=True)
            case ["lose"]:
                told += [f"abort {step}" for step in session.lost()]
            case ["silent"]:
                if not session.may_move(2):
                    told.append("waits")
                else:
                    assert not session.ended(2)
                    told += [f"abort {step}" for step in session.lost()]
            case ["leave"]:
                session.leave()
            case ["fetched", state]:
                told += [f"abort {step}" for step in session.fetched(None if state == "nothing" else state.encode())]
            case ["put", "away"]:
                assert session.snapshot is not None
                told += [] if session.put_away(session.snapshot) else ["stays"]
            case ["brought", state]:
                told += [f"abort {step}" for step in session.brought(None if state == "nothing" else state.encode())]
            case ["caller", "of", number, "leaves"]:
                session.left(self.entries[number])
            case ["restore", state]:
                told += [f"abort {step}" for step in session.restore(state.encode())]
            case _:
                raise AssertionError(f"unknown: {words}")
        return told + self.next()

    def next(self) -> list[str]:
        session = self.session
        told = ["fetch"] if session.wants_state else []
        told += ["bring back"] if session.wants_snapshot else []
        told += ["place"] if session.wants_place else []
        for send in session.ready(pipelined=self.pipelined):
            number = send.entry.message.decode().strip()
            self.sent[number] = send
            again = " again" if send.entry.step is None else ""
            told.append(f"send {number}{again}" + (f" after {send.restore.decode()}" if send.restore else ""))
        return told


class Copy:
    """The sequences of a copy; a clock that is told in the file."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.rows, self.delay_s = said.get("max_rows", 4), said.get("delay_s", 0.0)
        self.enough = enough_rows(self.rows, said.get("minimum_slot_utilization", 0.0))
        self.schedule: Schedule[str] = Schedule(
            "m",
            max_live=said.get("max_live", 10),
            max_waiting=said.get("max_waiting", 10),
            idle_s=said.get("idle_s", 60),
        )
        self.now_s = 0.0
        self.running: dict[str, Sequence[str]] = {}
        self.steps: dict[str, tuple[Sequence[str], Step[str]]] = {}

    def do(self, words: list[str]) -> list[str]:
        told: list[str] = []
        match words:
            case ["at", seconds]:
                self.now_s = float(seconds)
                told = [f"forget {each.id}" for each in self.schedule.expire(self.now_s)]
            case ["step", name, *flags]:
                told = self.step(name, flags)
            case ["next"]:
                told = self.next()
            case ["ran", *names]:
                for name in names:
                    self.schedule.ended(self.running.pop(name), self.now_s)
            case ["goes", "on", name]:
                self.schedule.again(self.running.pop(name), self.now_s)
            case ["withdraw", name]:
                told = [] if self.schedule.withdraw(*self.steps[name], self.now_s) else ["too late"]
            case _:
                raise AssertionError(f"unknown: {words}")
        return told

    def step(self, name: str, flags: list[str]) -> list[str]:
        kind = next((flag for flag in flags if flag.startswith("kind-")), None)
        step = Step(name, Waiting(1, kind, self.now_s), "start" in flags, "end" in flags)
        caller = next((flag for flag in flags if flag.startswith("by-")), "")
        try:
            self.steps[name] = (self.schedule.arrive(name.rstrip("0123456789"), step, self.now_s, caller), step)
        except MeshError as error:
            return [f"refuse {type(error).__name__}"]
        displaced, self.schedule.displaced = self.schedule.displaced, []
        return [f"displace {each.what}" for each in displaced]

    def next(self) -> list[str]:
        found = self.schedule.next(max_rows=self.rows, delay_s=self.delay_s, now_s=self.now_s, enough=self.enough)
        if isinstance(found, WaitUntil):
            return [] if found.at_s is None else [f"look again at {found.at_s:g}"]
        self.running.update({str(each.id): each for each in found})
        return [f"run {' '.join(each.steps[0].what for each in found)}"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    said = yaml.safe_load(path.read_text())
    kind, settings = next((kind, settings) for kind, settings in said.items() if kind in {"router", "copy"})
    it = Router(settings) if kind == "router" else Copy(settings)
    for line in said["run"]:
        assert it.do(str(line["do"]).split()) == line["then"], line["do"]
