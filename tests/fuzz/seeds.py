"""Real conversations to begin with: what a grpcio client says to a socket, what is answered, and our own client's."""

from __future__ import annotations

import gzip
import socket
import threading
from functools import cache

import grpc

from mesh.api.messages import InferParameter, ModelInferRequest
from mesh.wire.connection import Connection
from mesh.wire.frames import HEADERS
from mesh.wire.grpc_framing import framed, pack_prefix
from tests.fuzz.wire_targets import BOUNDS, Call, accepted
from tests.wire.pair import REQUEST, frames_of, said


@cache
def grpcio() -> tuple[bytes, bytes]:
    """Return the bytes of a grpcio client that makes three calls, and of our answers."""
    heard, told = [], []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        peer, _ = listener.accept()
        log: dict[int, Call] = {}
        connection = Connection(BOUNDS, accept=lambda *given: accepted(log, *given))
        connection.greet()
        with peer:
            while True:
                peer.sendall(answer := said(connection))
                told.append(answer)
                if not (data := peer.recv(1 << 16)):
                    return
                heard.append(data)
                connection.receive(data, 1.0)

    thread = threading.Thread(target=serve)
    thread.start()
    with listener, grpc.insecure_channel(f"127.0.0.1:{listener.getsockname()[1]}") as channel:
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            call = channel.unary_unary("/s/M", None, None)
            metadata = (("x-a", "1"), ("x-b-bin", b"\0\1"))
            call(b"m" * 100, metadata=metadata, timeout=60, compression=compression, wait_for_ready=True)
        list(channel.stream_stream("/s/N", None, None)(iter([b"1", b"2"])))
    thread.join()
    return b"".join(heard), b"".join(told)


@cache
def ours() -> tuple[bytes, bytes]:
    """Return the bytes of our client that makes two calls, and of our server's answers."""
    log: dict[int, Call] = {}
    served = Connection(BOUNDS, accept=lambda *given: accepted(log, *given))
    served.greet()
    asking = Connection(BOUNDS)
    asking.greet()
    heard, told = [], []
    for body in (b"\0\0\0\0\3abc", b"\0\0\0\1\0" + b"x" * 256, b""):
        asking.call(REQUEST, Call(asking, answers=False), body)
        while asking.out or served.out:
            heard.append(said(asking))
            served.receive(heard[-1], 1.0)
            told.append(said(served))
            asking.receive(told[-1], 1.0)
    return b"".join(heard), b"".join(told)


def of(target: str) -> list[bytes]:
    """Return real inputs of a wire target."""
    heard, told = zip(grpcio(), ours(), strict=True)
    messages = [each.SerializeToString() for each in REQUESTS]
    body = b"".join(map(framed, messages))
    packed = gzip.compress(body)
    blocks = [payload for data in heard for kind, _, _, payload in frames_of(data) if kind == HEADERS]
    return {
        "server": [b"\0\1" + data for data in heard] + [b"\7\0" + data.partition(b"SM\r\n\r\n")[2] for data in heard],
        "client": [b"\0" + data for data in told],
        "blocks": [b"\0" + b"".join(bytes((len(block),)) + block for block in blocks if len(block) < 256)],
        "heads": blocks,
        "deframer": [b"\3\0" + body, b"\0\6" + pack_prefix(1, len(packed)) + packed],
        "texts": [b"100m", b"AAE,Ag==", b"%E2%82%AC%"],
    }.get(target, messages)


REQUESTS = [
    ModelInferRequest(
        model_name="m",
        model_version="1",
        inputs=[ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])],
        raw_input_contents=[b"\0" * 8],
    ),
    ModelInferRequest(
        model_name="m",
        id="7",
        parameters={"p": InferParameter(string_param="v")},
        inputs=[
            ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[0, 2]),
            ModelInferRequest.InferInputTensor(name="t", datatype="INT8", shape=[3]),
        ],
        raw_input_contents=[b"", b"abc"],
    ),
]
