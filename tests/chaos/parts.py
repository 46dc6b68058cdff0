"""The parts of a mesh that `tests.chaos.faults` disturbs: etcd members, nodes and routers, each behind links."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Final

from tests.fixtures.clocks import Clock, clock_library
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.link import Link, Links
from tests.fixtures.mesh import Process, free_port, start_node

KILLED_S: Final = (0.5, 3.0)
"""How long who was killed stays away."""
LASTS_S: Final = (1.0, 9.0)
"""How long other faults last: shorter and longer than a lease (5 s)."""
CLOCKS_S: Final = (-3600, -7, 7, 3600)
"""By how much clocks are set."""
CLOCK: Final = "clock set"


class Part:
    """What can be disturbed: a process behind links."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def pid(self) -> int:
        raise NotImplementedError

    def start(self) -> None:
        """Start it, or start it again, and wait until it is ready."""
        raise NotImplementedError

    def kill(self) -> None:
        """SIGKILL."""
        raise NotImplementedError

    def links(self) -> dict[str, list[Link]]:
        """Return the ways in which it can be cut off, and the links of each."""
        raise NotImplementedError

    def faults(self) -> list[str]:
        """Return the ways in which it can be disturbed."""
        return ["killed", "frozen", *self.links()]

    def disturb(self, what: str, random_: random.Random) -> float:
        """Begin one; return how many seconds it shall last."""
        match what:
            case "killed":
                self.kill()
                return random_.uniform(*KILLED_S)
            case "frozen":
                os.kill(self.pid, signal.SIGSTOP)
            case _:
                for link in self.links()[what]:
                    link.cut()
        return random_.uniform(*LASTS_S)

    def mend(self, what: str) -> None:
        """End it."""
        match what:
            case "killed":
                self.start()
            case "frozen":
                os.kill(self.pid, signal.SIGCONT)
            case _:
                for link in self.links()[what]:
                    link.heal()


class Member(Part):
    """One of three etcd members. Its clock is left alone: Go asks the kernel without libc."""

    def __init__(self, folder: Path, links: Links, number: int) -> None:
        super().__init__(f"etcd{number}")
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

    @property
    def pid(self) -> int:
        return self.server.pid

    def start(self) -> None:
        self.server.launch_and_wait()

    def kill(self) -> None:
        self.server.kill()

    def links(self) -> dict[str, list[Link]]:
        return {"cut off": [self.peers, *self.clients]}


class _Ours(Part):
    """A process of the mesh: behind one link to its port, with links of its own to every member of the registry."""

    def __init__(self, folder: Path, links: Links, members: list[Member], name: str) -> None:
        super().__init__(name)
        self.folder = folder
        self.port = free_port()
        self.front = links.to(f"127.0.0.1:{self.port}")
        self.address = self.front.address
        self.registry = [member.link(links) for member in members]
        self._clock = Clock(folder / f"{name}.clock") if clock_library() is not None else None
        self._process: Process | None = None

    @property
    def members(self) -> str:
        return ",".join(link.address for link in self.registry)

    @property
    def environment(self) -> dict[str, str]:
        return self._clock.environment if self._clock is not None else {}

    def launch(self) -> Process:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._process = self.launch().wait_ready()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def links(self) -> dict[str, list[Link]]:
        return {
            "cut off": [self.front, *self.registry],
            "cut off from the registry": self.registry,
            "cut off from callers": [self.front],
        }

    def faults(self) -> list[str]:
        return [*super().faults(), *([CLOCK] if self._clock is not None else [])]

    def disturb(self, what: str, random_: random.Random) -> float:
        if what != CLOCK or self._clock is None:
            return super().disturb(what, random_)
        self._clock.set(random_.choice(CLOCKS_S))
        return random_.uniform(*LASTS_S)

    def mend(self, what: str) -> None:
        """End it; a clock stays as it is until it is set again."""
        if what != CLOCK:
            super().mend(what)


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
