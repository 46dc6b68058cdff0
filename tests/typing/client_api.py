"""The public API of the client as its users write it. mypy reads this file; nothing runs it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mesh_client import AsyncClient, Client, InferResult, MeshClientError, StreamError, Tensor, Tls


def sync_use(rows: npt.NDArray[np.float32]) -> None:
    with Client("127.0.0.1:8001", tls=Tls(ca="ca.pem"), token="t", timeout_s=5.0) as client:
        result: InferResult = client.infer("iris", {"x": rows, "b": Tensor(rows, "BF16")}, parameters={"priority": 1})
        label: npt.NDArray[np.int64] = result["label"]
        print(label, result.model_version, [model.name for model in client.models()], client.health("iris"))
        with client.stream() as stream:
            sent: str = stream.send("iris", {"x": rows})
            try:
                for each in stream:
                    print(each.id == sent, each.final)
            except StreamError as error:
                print(error.id, error.code)


async def async_use(rows: npt.NDArray[np.float32]) -> None:
    async with AsyncClient() as client, client.stream(timeout_s=60) as stream:
        result = await stream.infer("iris", {"x": rows})
        print(result["label"], [copy.node for model in await client.models() for copy in model.copies])
        try:
            await client.load("iris")
        except MeshClientError as error:
            print(error.message)


def wrong_use(client: Client) -> None:
    client.infer("iris", [1.0])  # type: ignore[arg-type] # inputs are a dict of arrays by name
