"""The wire and grpcio, driven by the same scripts, do the same: statuses, texts, messages, metadata."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.core.errors import RemoteError
from mesh.wire.transport import Channel, TlsConfig
from tests.fixtures.certs import make_certs
from tests.wire import engines as e
from tests.wire.engines import Outcome

ENGINES = ("grpcio", "wire")
PAIRS = [(server, client) for server in ENGINES for client in ENGINES]
SIZES = (0, 1, 5, 16_379, 16_384, 16_385, 65_535, 65_536, 1_000_000)


@asynccontextmanager
async def served(
    server: str, client: str, tls: TlsConfig | None = None, trust: TlsConfig | None = None
) -> AsyncIterator[Channel]:
    listening = e.server(server, tls)
    await listening.start()
    address = listening.address if trust is None else f"localhost:{listening.address.rpartition(':')[2]}"
    channel = e.channel(client, address, trust)
    try:
        yield channel
    finally:
        await channel.close(0)
        await listening.stop(0)


async def unary(channel: Channel, method: str, message: bytes, *, metadata: Any = (), timeout_s: float = 60) -> Outcome:
    try:
        reply = await channel.unary(method, message, metadata=metadata, timeout_s=timeout_s)
    except RemoteError as error:
        return Outcome(error.status.name, error.message, (), mine(error.trailers))
    return Outcome("OK", "", (reply.message,), mine(reply.trailers))


def mine(trailers: Any) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(sorted(pair for pair in trailers if pair[0].startswith("t-")))


@pytest.mark.parametrize(("server", "client"), PAIRS)
async def test_messages_of_every_size_come_back(server: str, client: str) -> None:
    trailers = (("t-bytes-bin", b"\0\1\xfe"), ("t-text", "a value"))
    async with served(server, client) as channel:
        for size in SIZES:
            body = bytes(number % 251 for number in range(size))
            assert await unary(channel, e.ECHO, body) == Outcome("OK", "", (body,), trailers)


@pytest.mark.parametrize("why", [*e.FAILURES, "bug"])
async def test_failures_have_one_code_one_text_and_their_trailers(why: str) -> None:
    found = []
    for server, client in PAIRS:
        async with served(server, client) as channel:
            found.append(await unary(channel, e.FAIL, why.encode()))
    assert found == [found[0]] * len(PAIRS)
    assert found[0].trailers == (("t-why", why),)
    assert found[0].code == ("INTERNAL" if why == "bug" else e.FAILURES[why].code.name)
    assert why == "bug" or found[0].text == e.FAILURES[why].message


Heard = tuple[Any, list[bytes], grpc.StatusCode, Any]


def heard(address: str, method: str, messages: list[bytes]) -> Heard:
    """Return what a call brought: initial metadata, messages, status, trailing metadata.

    Of the synchronous client: the asynchronous one loses initial metadata that comes together with the status.
    """
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(method, None, None)(iter(messages), timeout=60)
        came: list[bytes] = []
        initial = call.initial_metadata()
        with contextlib.suppress(grpc.RpcError):
            came += call
        return mine(initial), came, call.code(), mine(call.trailing_metadata())


@pytest.mark.parametrize("server", ENGINES)
@pytest.mark.parametrize(
    ("method", "messages"),
    [
        (e.GREET, [b""]),
        (e.GREET, [b"fail"]),
        (e.GREET_STREAM, []),
        (e.GREET_STREAM, [b"a", b"b"]),
        (e.GREET_STREAM, [b"fail"]),
        (e.GREET_STREAM, [b"a", b"fail"]),
    ],
)
async def test_a_handler_sends_metadata_ahead_of_whatever_follows(
    server: str, method: str, messages: list[bytes]
) -> None:
    listening = e.server(server)
    await listening.start()
    try:
        found = await asyncio.to_thread(heard, listening.address, method, messages)
    finally:
        await listening.stop(0)
    code = grpc.StatusCode.INVALID_ARGUMENT if b"fail" in messages else grpc.StatusCode.OK
    answers = [message for message in messages if message != b"fail"]
    assert found == (mine(e.GREETING), answers, code, (("t-after", "1"),))


keys = st.from_regex(r"x-[a-z0-9_.-]{1,12}", fullmatch=True).filter(lambda key: not key.endswith("-bin"))
texts = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=300)
pairs = st.lists(
    st.one_of(st.tuples(keys, texts), st.tuples(keys.map(lambda key: key + "-bin"), st.binary(max_size=300))),
    max_size=6,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(pairs, min_size=1, max_size=4))
def test_metadata_arrives_as_it_was_sent(calls: list[list[tuple[str, str | bytes]]]) -> None:
    async def run() -> None:
        for server, client in PAIRS:
            async with served(server, client) as channel:
                for metadata in calls:
                    expected = repr(sorted(metadata)).encode()
                    assert await unary(channel, e.TELL, b"", metadata=tuple(metadata)) == Outcome("OK", "", (expected,))

    asyncio.run(run())


@pytest.mark.parametrize(("server", "client"), PAIRS)
async def test_a_deadline_and_a_cancellation_end_a_call(server: str, client: str) -> None:
    async with served(server, client) as channel:
        assert (await unary(channel, e.HANG, b"", timeout_s=0.2)).code == "DEADLINE_EXCEEDED"
        task = asyncio.create_task(unary(channel, e.HANG, b""))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await unary(channel, e.ECHO, b"still here")).messages == (b"still here",)


@pytest.mark.parametrize(("server", "client"), PAIRS)
async def test_too_large_and_unknown_are_refused_alike(server: str, client: str) -> None:
    async with served(server, client) as channel:
        # The texts are each library's own.
        assert (await unary(channel, e.ECHO, bytes(e.LIMITS.max_message_bytes + 1))).code == "RESOURCE_EXHAUSTED"
        assert (await unary(channel, "/t.T/None", b"")).code == "UNIMPLEMENTED"
        assert (await unary(channel, e.ECHO, b"next")).code == "OK"


@pytest.mark.parametrize(("server", "client"), PAIRS)
async def test_streams_of_all_sizes_keep_their_order(server: str, client: str) -> None:
    async with served(server, client) as channel:
        duplex = channel.stream(e.STREAM, metadata=(), timeout_s=60)
        sent = [bytes([size % 256]) * size for size in SIZES]
        sender = asyncio.create_task(send_all(duplex, sent))
        received = [await duplex.receive() for _ in sent]
        await sender
        assert received == sent
        assert await duplex.receive() is None


async def send_all(duplex: Any, messages: list[bytes]) -> None:
    for message in messages:
        await duplex.send(message)
    await duplex.half_close()


@pytest.mark.parametrize(("server", "client"), PAIRS)
async def test_a_stream_may_end_before_its_caller_does(server: str, client: str) -> None:
    async with served(server, client) as channel:
        # Nothing is sent: grpc.aio fails a write that meets the end of its stream with an error of its own.
        duplex = channel.stream(e.EARLY, metadata=(), timeout_s=60)
        assert await duplex.receive() == b"before you ask"
        assert await duplex.receive() is None


@pytest.mark.parametrize(("server", "client"), PAIRS)
async def test_a_stream_that_fails_says_why_after_what_it_answered(server: str, client: str) -> None:
    async with served(server, client) as channel:
        duplex = channel.stream(e.BREAK, metadata=(), timeout_s=60)
        await duplex.send(b"one")
        assert await duplex.receive() == b"one"
        with pytest.raises(RemoteError, match="that is enough") as caught:
            await duplex.receive()
        assert caught.value.status.name == "INVALID_ARGUMENT"


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_messages_are_read_by_both(algorithm: grpc.Compression) -> None:
    body = gzip.compress(b"x") + bytes(200_000)
    for server in ENGINES:
        listening = e.server(server)
        await listening.start()
        async with grpc.aio.insecure_channel(listening.address, compression=algorithm) as channel:
            call: Any = channel.unary_unary
            assert await call(e.ECHO)(body, timeout=60) == body
        await listening.stop(0)


@pytest.mark.parametrize(("server", "client"), PAIRS)
async def test_mutual_tls_is_spoken_and_strangers_are_refused(server: str, client: str, tmp_path: Path) -> None:
    certs = make_certs(tmp_path)
    ours = TlsConfig(cert=str(certs.server_cert), key=str(certs.server_key), ca=str(certs.ca))
    known = TlsConfig(cert=str(certs.client_cert), key=str(certs.client_key), ca=str(certs.ca))
    async with served(server, client, ours, known) as channel:
        assert (await unary(channel, e.ECHO, b"secret")).messages == (b"secret",)
    async with served(server, client, ours, TlsConfig(ca=str(certs.ca))) as channel:
        assert (await unary(channel, e.ECHO, b"secret", timeout_s=10)).code in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
