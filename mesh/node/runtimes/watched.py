"""A loaded version whose runs are marked in the node's journal, for the case that the process ends in one of them.

What a model raises to end the process (``sys.exit``, an interrupt) ends its request alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mesh.core.errors import ModelFailed
from mesh.core.types import TensorSpec
from mesh.node.runtimes.base import Loaded, Request, Steps, Tensors, Turn

Marks = tuple["memoryview[int]", int]
"""Numbers, and which of them counts the runs of a version that go on. To add one to it is one step of the interpreter's
loop: no other thread comes between, as nothing is called."""


class Watched:
    """A `Loaded` around another that runs in this process. About 0.2 us a run."""

    apart = None

    def __init__(self, name: str, loaded: Loaded, marks: memoryview[int], at: int, closed: Callable[[], None]) -> None:
        self._name = name
        self._loaded = loaded
        self._marks = marks
        self._at = at
        self._closed = closed
        self.inputs: tuple[TensorSpec, ...] = loaded.inputs
        self.outputs: tuple[TensorSpec, ...] = loaded.outputs
        self.parallel: int = loaded.parallel
        self.steady: bool = loaded.steady
        self.batches: bool = loaded.batches
        self.executor = loaded.executor
        self.admit: Callable[[Tensors], Tensors] = loaded.admit
        self._run = loaded.run
        steps = loaded.steps
        self.steps: Steps | None = None if steps is None else WatchedSteps(name, steps, marks, at)

    def run(self, inputs: Tensors, request: Request) -> Tensors:
        """Run it, marked."""
        marks, at = self._marks, self._at
        marks[at] += 1
        try:
            return self._run(inputs, request)
        except Exception:
            raise
        except BaseException as error:
            raise _left(self._name, error) from error
        finally:
            marks[at] -= 1

    def stream(self, inputs: Tensors, request: Request) -> Iterator[Tensors]:
        """Yield what it yields, each step marked."""
        marks, at = self._marks, self._at
        responses: Iterator[Tensors] | None = None
        while True:
            marks[at] += 1
            try:
                if responses is None:
                    responses = iter(self._loaded.stream(inputs, request))
                response = next(responses, None)
            except Exception:
                raise
            except BaseException as error:
                raise _left(self._name, error) from error
            finally:
                marks[at] -= 1
            if response is None:
                return
            yield response

    def close(self) -> None:
        """Close it, marked; its slot is another version's then."""
        marks, at = self._marks, self._at
        marks[at] += 1
        try:
            self._loaded.close()
        except Exception:
            raise
        except BaseException as error:
            raise _left(self._name, error) from error
        finally:
            marks[at] -= 1
            self._closed()

    def __repr__(self) -> str:
        """Show what is watched."""
        return f"<Watched {self._name} running={self._marks[self._at]}>"


class WatchedSteps:
    """`Steps` around others."""

    def __init__(self, name: str, steps: Steps, marks: memoryview[int], at: int) -> None:
        self._name = name
        self._step = steps.step
        self._marks = marks
        self._at = at
        self.most_rows: int = steps.most_rows
        self.generates: bool = steps.generates
        self.packed = steps.packed
        self.unpacked = steps.unpacked

    def step(self, turns: Sequence[Turn]) -> None:
        """Run them, marked."""
        marks, at = self._marks, self._at
        marks[at] += 1
        try:
            self._step(turns)
        except Exception:
            raise
        except BaseException as error:
            raise _left(self._name, error) from error
        finally:
            marks[at] -= 1


def _left(name: str, error: BaseException) -> ModelFailed:
    """Return what the caller of a model that wanted to end the process is told."""
    return ModelFailed(f"model '{name}' raised {type(error).__name__}: {error}")
