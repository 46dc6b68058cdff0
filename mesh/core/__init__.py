"""Everything that decides, as functions of values.

Two rules hold in this package, and tests/core/test_purity.py keeps them:

1. Nothing here imports asyncio, socket, grpc, time, random, os, logging or threading, nor another package of the mesh.
2. Time and randomness are arguments: ``now_s: float`` in seconds and ``u: float`` in [0, 1).
"""
