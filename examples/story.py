"""Text that is printed as it is made: `python examples/story.py [ADDRESS] [BEGINNING]`, against `mesh up`.

The text goes on at another copy of the model when the node that makes it dies.
"""

import sys

import numpy as np

from mesh_client import Client

address, beginning = (*sys.argv[1:], *("127.0.0.1:8001", "the router ")[len(sys.argv) - 1 :])[:2]

with Client(address) as client:
    prompt = {"PROMPT": np.array([[beginning]], dtype=object)}
    print(beginning, end="")
    for response in client.generate("prose", prompt, parameters={"max_tokens": 200, "temperature": 0.4, "seed": 7}):
        print(response["TEXT"][0, 0].decode(), end="", flush=True)
    print()
