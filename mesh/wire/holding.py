"""What one call of a server holds: the part of a message that is there, messages until they are answered.

Counted for its connection and its process from `COUNTED` bytes on, and given back once, when it ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from mesh.core.errors import MeshError, TooLarge
from mesh.core.traffic.held import COUNTED
from mesh.wire.connection import Connection
from mesh.wire.grpc_framing import Deframer
from mesh.wire.inflate import inflate


class Holding:
    """The part of a call that counts. 0 <= what is charged <= the bytes held."""

    __slots__ = ("_charged", "_held", "_inflating", "_kept", "connection", "over")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.over = False
        self._held = 0
        """Of a message that is not whole."""
        self._kept = 0
        """Of messages that wait for their answers."""
        self._charged = 0
        self._inflating: asyncio.Task[None] | None = None

    def assemble(self, held: int) -> None:
        """Say how much of a message that is not whole is held.

        Raises `TooLarge` when the connection holds too much, `TooMuchHeld` when the process does.
        """
        connection = self.connection
        connection.assembling += held - self._held
        self._held = held
        if connection.assembling > connection.bounds.max_assembling:
            raise TooLarge(
                f"more than {connection.bounds.max_assembling} bytes of unfinished messages on one connection"
            )
        if held >= COUNTED or self._charged:
            self._charge()

    def keep(self, more: int) -> None:
        """Say that so many bytes more of whole messages are held until they are answered. Raises `TooMuchHeld`."""
        self._kept += more
        if more >= COUNTED or self._charged:
            try:
                self._charge()
            except MeshError:
                self._kept -= more
                raise

    def _charge(self) -> None:
        held = self._held + self._kept
        more = (held if held >= COUNTED else 0) - self._charged
        if more > 0:
            self.connection.caller.take(more)
        else:
            self.connection.caller.add(more)
        self._charged += more

    def unpack(self, messages: deque[bytes], deframer: Deframer, go_on: Callable[[], None]) -> None:
        """Inflate the first of the messages that wait, which is `Packed`, and then call `go_on`; once at a time."""
        if self._inflating is None:
            self._inflating = asyncio.get_running_loop().create_task(self._unpack(messages, deframer, go_on))

    async def _unpack(self, messages: deque[bytes], deframer: Deframer, go_on: Callable[[], None]) -> None:
        try:
            message = await inflate(deframer.inflation(messages[0]), self.connection.caller)
            self._inflating = None
            if not self.over:
                messages[0] = message
                go_on()
        except Exception as error:  # noqa: BLE001 - the edge: every failure becomes a status
            self._inflating = None
            self.give_up(error)

    def give_up(self, error: BaseException) -> None:
        """End the call because of `error`, and whatever works on it."""
        raise NotImplementedError

    def release(self) -> None:
        """Give back what is held."""
        if self._held:
            self.connection.assembling -= self._held
            self._held = 0
        if self._charged:
            self.connection.caller.add(-self._charged)
            self._charged = 0
        if self._inflating is not None:
            self._inflating.cancel()
            self._inflating = None
