"""Servers that say nothing, break off and lie, against a client: the right status, no stream left, and on it goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from mesh.core.errors import Code, RemoteError
from mesh.wire import frames as f
from mesh.wire.client import WireChannel
from mesh.wire.endpoint import Endpoint
from mesh.wire.header_cache import encode_all
from tests.wire import engines as e
from tests.wire.raw_server import HEAD, HELLO, OK, Accepted, Script, message, raw_server
from tests.wire.test_chaos import until


@asynccontextmanager
async def facing(script: Script) -> AsyncIterator[WireChannel]:
    """Yield a channel to a server that follows `script`; at the end no call is left on it."""
    async with raw_server(script) as address:
        channel = WireChannel(address, limits=e.LIMITS)
        try:
            yield channel
            await until(lambda: not open_calls(channel), "no call is left on the connection")
        finally:
            await channel.close(0)


def open_calls(channel: WireChannel) -> int:
    return sum(len(link.connection.streams) for link in channel.links._links)


async def failure(channel: WireChannel, body: bytes = b"x", timeout_s: float | None = 60) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await channel.unary(e.ECHO, body, metadata=(), timeout_s=timeout_s)
    return caught.value


async def silent(accepted: Accepted) -> None:
    await accepted.closed()


async def mute(accepted: Accepted) -> None:
    """Greet, and answer nothing."""
    await accepted.greet()
    await accepted.closed()


async def echoing(accepted: Accepted) -> None:
    await accepted.greet()
    while True:
        accepted.answer(await accepted.call(), b"fine")


def all_going(links: list[Endpoint]) -> bool:
    return all(link.connection.going_away for link in links)


async def test_a_server_that_says_nothing_costs_the_deadline_and_no_more() -> None:
    async with facing(silent) as channel:
        error = await failure(channel, timeout_s=0.3)
    assert (error.status, error.unsent) == (Code.DEADLINE_EXCEEDED, True)
    assert "while connecting" in error.message


async def test_a_server_that_greets_and_never_answers_costs_the_deadline_and_is_told() -> None:
    told: list[int] = []

    async def hears(accepted: Accepted) -> None:
        await accepted.greet()
        told.append(f.u32((await accepted.until(f.RST_STREAM))[3]))

    async with facing(hears) as channel:
        error = await failure(channel, timeout_s=0.3)
        assert (error.status, error.transport_failed, error.unsent) == (Code.DEADLINE_EXCEEDED, False, False)
        await until(lambda: told, "the server hears of it")
    assert told == [f.ErrorCode.CANCEL]


async def test_a_stream_first_used_after_its_deadline_is_not_begun() -> None:
    async with facing(mute) as channel:
        await failure(channel, timeout_s=0.1)  # The connection is there now.
        duplex = channel.stream(e.STREAM, metadata=(), timeout_s=0.05)
        await asyncio.sleep(0.2)
        with pytest.raises(RemoteError) as caught:
            await asyncio.wait_for(duplex.receive(), 30)
        assert (caught.value.status, caught.value.unsent) == (Code.DEADLINE_EXCEEDED, True)


async def test_calls_above_the_last_id_of_a_goaway_were_certainly_not_run_and_the_others_go_on() -> None:
    async def goes_away(accepted: Accepted) -> None:
        await accepted.greet()
        first, _ = await accepted.call(), await accepted.call()
        accepted.writer.write(f.goaway(first, f.ErrorCode.NO_ERROR))
        accepted.answer(first, b"still")
        await accepted.closed()

    async with facing(goes_away) as channel:
        first = asyncio.create_task(channel.unary(e.ECHO, b"1", metadata=(), timeout_s=60))
        second = asyncio.create_task(channel.unary(e.ECHO, b"2", metadata=(), timeout_s=60))
        assert (await first).message == b"still"
        with pytest.raises(RemoteError) as caught:
            await second
    error = caught.value
    assert (error.status, error.transport_failed, error.unsent) == (Code.UNAVAILABLE, True, True)


async def test_a_goaway_sends_the_next_call_over_another_connection() -> None:
    served = 0

    async def once(accepted: Accepted) -> None:
        nonlocal served
        served += 1
        await accepted.greet()
        accepted.answer(await accepted.call(), b"fine")
        accepted.writer.write(f.goaway(1, f.ErrorCode.NO_ERROR))
        await accepted.closed()

    async with facing(once) as channel:
        for number in range(1, 4):
            assert (await channel.unary(e.ECHO, b"", metadata=(), timeout_s=60)).message == b"fine"
            going = [link for link in channel.links._links if link.connection.next_id > 1]
            await until(partial(all_going, going), "the GOAWAY was read")
            assert served == number


RESETS = {
    f.ErrorCode.REFUSED_STREAM: (Code.UNAVAILABLE, True),
    f.ErrorCode.CANCEL: (Code.CANCELLED, False),
    f.ErrorCode.ENHANCE_YOUR_CALM: (Code.RESOURCE_EXHAUSTED, False),
    f.ErrorCode.INADEQUATE_SECURITY: (Code.PERMISSION_DENIED, False),
}


@pytest.mark.parametrize("code", [*f.ErrorCode, 0xDEAD])
async def test_a_reset_has_the_status_that_grpc_gives_it(code: int) -> None:
    async def resets(accepted: Accepted) -> None:
        await accepted.greet()
        accepted.writer.write(f.rst_stream(await accepted.call(), code))
        await accepted.closed()

    async with facing(resets) as channel:
        error = await failure(channel)
    # https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#errors
    expected, unsent = RESETS.get(code, (Code.INTERNAL, False))  # type: ignore[call-overload] # any number may come
    assert (error.status, error.transport_failed, error.unsent) == (expected, True, unsent)


@pytest.mark.parametrize("said", ["nothing", "headers", "half a message"])
async def test_a_connection_that_breaks_in_an_answer_is_a_transport_failure(said: str) -> None:
    async def breaks(accepted: Accepted) -> None:
        await accepted.greet()
        number = await accepted.call()
        if said != "nothing":
            accepted.headers(number, HEAD)
        if said == "half a message":
            accepted.data(number, message(bytes(1000))[:500])
        await accepted.writer.drain()

    async with facing(breaks) as channel:
        error = await failure(channel)
    assert (error.status, error.transport_failed, error.unsent) == (Code.UNAVAILABLE, True, False)
    assert channel.address in error.message


ODD = {
    "no trailers": (HEAD, message(b"a"), None, Code.INTERNAL),
    "two messages": (HEAD, message(b"a") + message(b"b"), OK, Code.INTERNAL),
    "no message": (HEAD, b"", OK, Code.INTERNAL),
    "half a message": (HEAD, message(b"abc")[:-1], OK, Code.INTERNAL),
    "no gRPC message": (HEAD, b"\x07\0\0\0\0", OK, Code.INTERNAL),
    "a status that is no number": (HEAD, b"", encode_all([(b"grpc-status", b"fine")]), Code.UNKNOWN),
    "a status nobody knows": (HEAD, b"", encode_all([(b"grpc-status", b"99")]), Code.UNKNOWN),
    "trailers without a status": (HEAD, b"", encode_all([(b"x-other", b"1")]), Code.UNKNOWN),
    "a proxy's 502": (encode_all([(b":status", b"502"), (b"content-type", b"text/html")]), b"<html>", None,
                      Code.UNAVAILABLE),
    "a page": (encode_all([(b":status", b"200"), (b"content-type", b"text/html")]), b"<html>", None, Code.UNKNOWN),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
async def test_an_answer_that_is_not_grpcs_is_an_error_and_the_next_call_is_served(what: str) -> None:
    head, body, last, code = ODD[what]

    async def odd(accepted: Accepted) -> None:
        await accepted.greet()
        number = await accepted.call()
        accepted.headers(number, head)
        accepted.data(number, body, end=last is None)
        if last is not None:
            accepted.headers(number, last, end=True)
        accepted.answer(await accepted.call(), b"next")
        await accepted.closed()

    async with facing(odd) as channel:
        assert (await failure(channel)).status is code
        assert (await channel.unary(e.ECHO, b"", metadata=(), timeout_s=60)).message == b"next"


async def test_a_message_larger_than_is_taken_is_refused_before_it_came() -> None:
    async def large(accepted: Accepted) -> None:
        await accepted.greet()
        number = await accepted.call()
        accepted.headers(number, HEAD)
        accepted.data(number, b"\0\x7f\xff\xff\xff" + bytes(1000))
        await accepted.until(f.RST_STREAM)

    async with facing(large) as channel:
        assert (await failure(channel)).status is Code.RESOURCE_EXHAUSTED


async def test_an_answer_before_the_end_of_the_question_leaves_no_stream_behind() -> None:
    refused = encode_all([(b"grpc-status", b"8"), (b"grpc-message", b"too large")])
    told: list[int] = []

    async def hasty(accepted: Accepted) -> None:
        # No RST_STREAM follows the answer, which HTTP/2 leaves to the server.
        await accepted.greet()
        accepted.headers(await accepted.call(whole=False), HEAD + refused, end=True)
        told.append((await accepted.until(f.RST_STREAM))[2])
        await accepted.closed()

    async with facing(hasty) as channel:
        error = await failure(channel, bytes(1_000_000))
        assert (error.status, error.message) == (Code.RESOURCE_EXHAUSTED, "too large")
        assert not open_calls(channel)
        await until(lambda: told, "the server hears that no more follows")


async def test_a_channel_finds_a_server_that_came_back_on_its_port() -> None:
    async with raw_server(echoing) as address:
        channel = WireChannel(address, limits=e.LIMITS)
        assert (await channel.unary(e.ECHO, b"", metadata=(), timeout_s=60)).message == b"fine"
    await until(lambda: not channel.links._links, "the loss is noticed")
    gone = await failure(channel)
    assert (gone.status, gone.transport_failed, gone.unsent) == (Code.UNAVAILABLE, True, True)
    assert address in gone.message
    answers: list[bytes] = []
    async with raw_server(echoing, port=int(address.rpartition(":")[2])):

        async def asks() -> None:
            while not answers:
                try:
                    reply = await channel.unary(e.ECHO, b"", metadata=(), timeout_s=60)
                except RemoteError as error:
                    assert error.unsent  # noqa: PT017
                    await asyncio.sleep(0.02)
                else:
                    answers.append(reply.message)

        await asyncio.wait_for(asks(), 60)
        await channel.close(0)
    assert answers == [b"fine"]


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(64), f.ping(b"12345678", ack=False)])
async def test_a_peer_that_does_not_speak_http2_cannot_be_connected_to(garbage: bytes) -> None:
    async def other(accepted: Accepted) -> None:
        accepted.writer.write(garbage)
        await accepted.closed()

    async with facing(other) as channel:
        error = await failure(channel)
    assert (error.status, error.transport_failed, error.unsent) == (Code.UNAVAILABLE, True, True)


async def test_cancelled_while_connecting_the_caller_is_free_and_the_next_is_served() -> None:
    go = asyncio.Event()

    async def late(accepted: Accepted) -> None:
        await go.wait()
        await echoing(accepted)

    async with facing(late) as channel:
        task = asyncio.create_task(channel.unary(e.ECHO, b"", metadata=(), timeout_s=None))
        await until(lambda: channel.links._waiters, "the call waits for the connection")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not channel.links._waiters
        go.set()
        assert (await channel.unary(e.ECHO, b"", metadata=(), timeout_s=60)).message == b"fine"


async def test_a_stream_that_is_cancelled_while_connecting_is_never_opened() -> None:
    go = asyncio.Event()
    calls: list[int] = []

    async def late(accepted: Accepted) -> None:
        await go.wait()
        await accepted.greet()
        while True:
            calls.append(await accepted.call(whole=False))
            accepted.answer(calls[-1], b"fine")

    async with facing(late) as channel:
        duplex = channel.stream(e.STREAM, metadata=(), timeout_s=None)
        receiving = asyncio.create_task(duplex.receive())
        await until(lambda: channel.links._waiters, "the stream waits for the connection")
        duplex.cancel()
        go.set()
        with pytest.raises(RemoteError) as caught:
            await asyncio.wait_for(receiving, 30)
        assert (caught.value.status, caught.value.unsent) == (Code.CANCELLED, True)
        assert (await channel.unary(e.ECHO, b"", metadata=(), timeout_s=60)).message == b"fine"
        assert calls == [1]


@pytest.mark.parametrize("size", [1, 10_000_000])
async def test_cancelled_while_sending_or_waiting_the_server_is_told(size: int) -> None:
    told = asyncio.Event()

    async def stalls(accepted: Accepted) -> None:
        await accepted.greet()
        await accepted.call(whole=size == 1)
        await accepted.until(f.RST_STREAM)
        told.set()

    async with facing(stalls) as channel:
        task = asyncio.create_task(channel.unary(e.ECHO, bytes(size), metadata=(), timeout_s=None))
        await until(lambda: open_calls(channel), "the call is open")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(told.wait(), 60)
        (link,) = channel.links._links
        assert link.connection.waiting_bytes == 0


async def test_a_send_that_waits_for_the_window_hears_of_the_end() -> None:
    async def stalls_and_ends(accepted: Accepted) -> None:
        await accepted.greet()
        number = await accepted.call(whole=False)
        await accepted.until(f.DATA)
        accepted.headers(number, HEAD + encode_all([(b"grpc-status", b"14")]), end=True)
        await accepted.closed()

    async with facing(stalls_and_ends) as channel:
        duplex = channel.stream(e.STREAM, metadata=(), timeout_s=60)
        with pytest.raises(RemoteError):
            await asyncio.wait_for(duplex.send(bytes(1_000_000)), 60)
        with pytest.raises(RemoteError) as caught:
            await duplex.receive()
        assert caught.value.status is Code.UNAVAILABLE


async def test_a_channel_closed_while_it_connects_leaves_no_connection() -> None:
    left = asyncio.Event()
    met = asyncio.Event()

    async def waits(accepted: Accepted) -> None:
        met.set()
        await accepted.closed()
        left.set()

    async with raw_server(waits) as address:
        channel = WireChannel(address, limits=e.LIMITS)
        task = asyncio.create_task(channel.unary(e.ECHO, b"", metadata=(), timeout_s=None))
        await asyncio.wait_for(met.wait(), 60)
        await channel.close(0)
        with pytest.raises(RemoteError, match="this channel is closed"):
            await task
        await asyncio.wait_for(left.wait(), 60)


async def test_a_server_that_takes_no_streams_for_now_is_waited_for() -> None:
    more = asyncio.Event()

    async def later(accepted: Accepted) -> None:
        await accepted.greet(f.settings({f.MAX_CONCURRENT_STREAMS: 0}))
        await more.wait()
        accepted.writer.write(f.settings({f.MAX_CONCURRENT_STREAMS: 1}))
        while True:
            accepted.answer(await accepted.call(), b"fine")

    async with facing(later) as channel:
        waiting = asyncio.create_task(channel.unary(e.ECHO, b"", metadata=(), timeout_s=60))
        await until(lambda: channel.links._links, "it is connected")
        more.set()
        assert (await asyncio.wait_for(waiting, 30)).message == b"fine"


async def test_a_server_of_one_stream_at_a_time_serves_many_calls() -> None:
    async def narrow(accepted: Accepted) -> None:
        await accepted.greet(f.settings({f.MAX_CONCURRENT_STREAMS: 1}) + HELLO)
        while True:
            accepted.answer(await accepted.call(), b"fine")

    async with facing(narrow) as channel:
        calls = [channel.unary(e.ECHO, b"", metadata=(), timeout_s=60) for _ in range(50)]
        assert {reply.message for reply in await asyncio.gather(*calls)} == {b"fine"}
