"""A call's message that comes in tiny pieces costs the router what its bytes cost, not their square."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, cast

from mesh.api.messages import InferParameter, ModelInferRequest
from mesh.router.hop import KEPT_BYTES, LOOKS, Hop
from mesh.wire.connection import Connection
from mesh.wire.flow import Bounds
from mesh.wire.grpc_framing import framed


class Begun(Hop):
    """A call on its way, without a connection on either side."""

    __slots__ = ("handed_over", "sent")

    def __init__(self) -> None:
        ignored: Any = SimpleNamespace(consumed=lambda _stream, _size: None, send_data=self._sent)
        self._down_connection = self._up_connection = ignored
        self._down = self._up = cast("Any", SimpleNamespace())
        self._origin = cast("Any", SimpleNamespace(max_message_bytes=1 << 20))
        self._kept = bytearray()
        self._owed_down = self._looks = 0
        self._ended = False
        self.sent = b""
        self.handed_over = b""

    def _sent(self, _stream: object, data: bytes, *, end: bool) -> bool:
        self.sent += data
        return True

    def _hand_over(self, data: bytes) -> None:
        self.handed_over = data


def test_what_is_kept_for_another_attempt_is_kept_as_bytes_up_to_its_limit() -> None:
    hop = Begun()
    hop._size = 2 * KEPT_BYTES
    for _ in range(1000):
        hop._pass_on(b"xy", end=False)
    assert hop._kept is not None
    assert bytes(hop._kept) == b"xy" * 1000
    assert sys.getsizeof(hop._kept) <= 4096 + 4 * 1000
    hop._pass_on(b"z" * (KEPT_BYTES - 2000), end=False)
    assert len(hop._kept or b"") == KEPT_BYTES
    hop._pass_on(b"!", end=False)
    assert hop._kept is None
    assert len(hop.sent) == KEPT_BYTES + 1


async def test_what_is_handed_over_is_given_back_to_the_caller_once() -> None:
    hop = Begun()
    given: list[int] = []
    connection: Any = Connection(Bounds())
    connection.consumed = lambda _stream, size: given.append(size)
    hop._down_connection = connection
    head = SimpleNamespace(timeout_s=None, compression=None)
    hop._origin = cast("Any", SimpleNamespace(head=head, peer="", deadlines=None, max_message_bytes=1 << 20))
    hop._dispatch = cast("Any", SimpleNamespace(infer=None))
    hop._bucket = hop._span = hop._target = hop._tries = None
    data = framed(bytes(1000))
    hop._owed_down = 300
    hop._credit()
    hop._owed_down = 200
    Hop._hand_over(hop, data[:500])
    hop._down.receiver.data(hop._down, data[500:700], False)
    assert all(size >= 0 for size in given)
    assert sum(given) == 700


def test_a_front_that_comes_in_ever_more_pieces_is_left_to_the_path_that_can_wait() -> None:
    parameters = {str(number): InferParameter(bool_param=True) for number in range(200)}
    data = framed(ModelInferRequest(model_name="m", parameters=parameters).SerializeToString())
    hop = Begun()
    looks = 0
    while not hop.handed_over:
        looks += 1
        hop._front(data[: 20 + looks], end=False)
    assert looks == LOOKS + 1
    assert data[: 20 + looks] == hop.handed_over
