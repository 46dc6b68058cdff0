"""A signal, frame by frame, to a model with a state: `python examples/loud_or_quiet.py [ADDRESS]`, against `mesh up`.

All steps of a session see the state that the steps before left, also when its node or router dies on the way.
"""

import sys

import numpy as np

from mesh_client import Client

frames = np.sin(np.arange(64 * 60)).astype(np.float32).reshape(60, 64) / 10
frames[30:40] *= 20  # loud for ten frames

with Client(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001") as client, client.session("detector") as session:
    for at, frame in enumerate(frames):
        event = session.step({"frame": frame[None]})["event"][0, 0].decode()
        if event:
            print(f"frame {at}: {event}")
