"""The demo's story: text that a small language model makes, told on although its node dies in the middle."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import numpy as np

from mesh_client import AsyncClient

MODEL: Final = "prose"
PROMPT: Final = "the mesh "
LENGTH: Final = 4000
"""Characters; enough that not all of them are on their way when the node dies."""
HALF: Final = 160
"""Characters that are read before that."""
SHOWN: Final = 400


class Story:
    """One generation. Its text so far is in `text`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.text = ""
        self.took_s = 0.0
        self.begun = asyncio.Event()
        """Set when `HALF` characters were read; no more are read until `killed`."""
        self.killed = asyncio.Event()

    async def tell(self) -> str:
        """Read it all and return it. Raises `MeshClientError` when it is lost."""
        begun_s = time.monotonic()
        async for letter in self._responses():
            self.took_s = time.monotonic() - begun_s
            self.text += letter
            if len(self.text) == HALF:
                self.begun.set()
                await self.killed.wait()
        return self.text

    async def undisturbed(self) -> str:
        """Return what the same request gives when nothing happens."""
        return "".join([letter async for letter in self._responses()])

    async def _responses(self) -> Any:
        prompt = np.array([[PROMPT.encode()]], dtype=object)
        asked: dict[str, bool | int | float | str] = {"max_tokens": LENGTH, "temperature": 0.5, "seed": 26}
        async for result in self._client.generate(MODEL, {"PROMPT": prompt}, parameters=asked):
            yield result["TEXT"][0, 0].decode()


def shown(text: str, cut: int) -> str:
    """Return the beginning of a story with a mark where its node died."""
    told = f"{PROMPT}{text[:cut]} <<node killed here>> {text[cut:SHOWN]} ..."
    return told.replace("\n", " ")
