"""The mesh's embedded registry as a process. Prints its address and serves until it is ended."""

from __future__ import annotations

import asyncio

from mesh.registry.embedded import EmbeddedRegistry


async def main() -> None:
    registry = EmbeddedRegistry("127.0.0.1", 0)
    await registry.start()
    print(registry.address, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
