"""The parts of a mesh that `tests.chaos.faults` disturbs: etcd members, nodes and routers, each behind links."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Final, Protocol

from tests.fixtures.etcd import EtcdServer
from tests.fixtures.link import Link, Links
from tests.fixtures.mesh import Process, free_port, start_node

KILLED_S: Final = (0.5, 3.0)
"""How long who was killed stays away."""
LASTS_S: Final = (1.0, 9.0)
"""How long other faults last: shorter and longer than a lease (5 s)."""
CLOCKS_S: Final = (-3600, -7, 7, 3600)
"""By how much clocks are set."""


class Part(Protocol):
    """What can be disturbed."""

    name: str

    def faults(self) -> list[str]:
        """Return the ways in which it can be."""

    def disturb(self, what: str, random_: random.Random) -> None:
        """Begin one."""

    def lasts_s(self, what: str, random_: random.Random) -> float:
        """Return how long it shall last."""

    def mend(self, what: str) -> None:
        """End it."""

    def end(self) -> None:
        """Kill it."""


def clock_library() -> Path | None:
    """Return libfaketime, which sets the clock of a process."""
    found = [*Path("/usr/lib").glob("**/faketime/libfaketime.so.1")]
    return found[0] if found else None


class Member:
    """One of three etcd members. Its clock is left alone: Go asks the kernel without libc."""

    def __init__(self, folder: Path, links: Links, number: int) -> None:
        self.name = f"etcd{number}"
        self.server = EtcdServer(folder / self.name)
        self.peers = links.to(self.server.peer_address)
        self.server.peer_via = self.peers.address
        self.clients: list[Link] = []

    @staticmethod
    def three(folder: Path, links: Links) -> list[Member]:
        members = [Member(folder, links, number) for number in range(3)]
        for member in members:
            member.server.join([each.server for each in members])
        return members

    def link(self, links: Links) -> Link:
        """Return a link to it for one process."""
        link = links.to(self.server.address)
        self.clients.append(link)
        return link

    def faults(self) -> list[str]:
        return ["killed", "frozen", "cut off"]

    def disturb(self, what: str, random_: random.Random) -> None:
        match what:
            case "killed":
                self.server.kill()
            case "frozen":
                os.kill(self.server.pid, signal.SIGSTOP)
            case _:
                for link in (self.peers, *self.clients):
                    link.cut()

    def lasts_s(self, what: str, random_: random.Random) -> float:
        return random_.uniform(*(KILLED_S if what == "killed" else LASTS_S))

    def mend(self, what: str) -> None:
        match what:
            case "killed":
                self.server.launch_and_wait()
            case "frozen":
                os.kill(self.server.pid, signal.SIGCONT)
            case _:
                for link in (self.peers, *self.clients):
                    link.heal()

    def end(self) -> None:
        self.server.kill()


class _Ours:
    """A process of the mesh: behind one link to its port, with links of its own to every member of the registry."""

    def __init__(self, folder: Path, links: Links, members: list[Member], name: str) -> None:
        self.name = name
        self.folder = folder
        self.port = free_port()
        self.front = links.to(f"127.0.0.1:{self.port}")
        self.address = self.front.address
        self.registry = [member.link(links) for member in members]
        self._clock = folder / f"{name}.clock"
        self._clock.write_text("+0")
        self.process: Process | None = None

    @property
    def members(self) -> str:
        return ",".join(link.address for link in self.registry)

    @property
    def environment(self) -> dict[str, str]:
        library = clock_library()
        if library is None:
            return {}
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
        }

    def launch(self) -> Process:
        raise NotImplementedError

    def start(self) -> None:
        self.process = self.launch().wait_ready()

    def faults(self) -> list[str]:
        clock = ["clock set"] if clock_library() is not None else []
        return ["killed", "frozen", "cut off", "cut off from the registry", "cut off from callers", *clock]

    def disturb(self, what: str, random_: random.Random) -> None:
        assert self.process is not None
        match what:
            case "killed":
                self.process.kill()
            case "frozen":
                self.process.send(signal.SIGSTOP)
            case "clock set":
                # Its new file is there whole: a half-written one would be read as another time.
                beside = self._clock.with_suffix(".new")
                beside.write_text(f"{random_.choice(CLOCKS_S):+d}")
                beside.rename(self._clock)
            case _:
                for link in self._links(what):
                    link.cut()

    def lasts_s(self, what: str, random_: random.Random) -> float:
        return random_.uniform(*(KILLED_S if what == "killed" else LASTS_S))

    def mend(self, what: str) -> None:
        assert self.process is not None
        match what:
            case "killed":
                self.start()
            case "frozen":
                self.process.send(signal.SIGCONT)
            case "clock set":
                pass
            case _:
                for link in self._links(what):
                    link.heal()

    def _links(self, what: str) -> list[Link]:
        return {
            "cut off": [self.front, *self.registry],
            "cut off from the registry": self.registry,
            "cut off from callers": [self.front],
        }[what]

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()


class Node(_Ours):
    """A node."""

    def __init__(self, folder: Path, links: Links, members: list[Member], number: int, lease_s: int | None) -> None:
        super().__init__(folder, links, members, f"node{number}")
        self._more = () if lease_s is None else ("--lease-ttl-s", str(lease_s))

    def launch(self) -> Process:
        where = ("--grpc-port", str(self.port), "--advertise", self.address)
        return start_node(
            self.members,
            self.name,
            *where,
            *self._more,
            models=self.folder / "models",
            log=self.folder / f"{self.name}.log",
            env=self.environment,
        )


class Router(_Ours):
    """A router."""

    def __init__(self, folder: Path, links: Links, members: list[Member], number: int) -> None:
        super().__init__(folder, links, members, f"router{number}")

    def launch(self) -> Process:
        ports = ("--grpc-port", str(self.port), "--http-port", "0")
        return Process(
            "router",
            *("--registry", self.members),
            *ports,
            "--json-ready",
            log=self.folder / f"{self.name}.log",
            env=self.environment,
        )
