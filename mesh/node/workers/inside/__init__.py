"""What runs in a worker process, and in the template that workers are forked from.

These files import the standard library and numpy alone, as another interpreter (``python`` in model.yaml) has nothing
else; `msgspec` and the node's own runtimes are used where they can be imported. Python 3.10 and newer.
"""
