"""A model's class, in the node and in a worker: whatever it raises is its own failure, and an `Exception`."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.node.workers.inside.hosted import CannotLoad, Context, Hosted, ModelRequest, ModelTurn, Plan, said

X = {"x": np.ones((1, 1), np.float32)}
ENDS = ["SystemExit(3)", "KeyboardInterrupt()", "GeneratorExit()", "BaseException('all of it')", "Rude()"]
RUDE = """
class Rude(BaseException):
    def __str__(self):
        raise SystemExit(9)
"""


@pytest.fixture(params=[True, False], ids=["in the node", "in a worker"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Hosted]]:
    """Load code as a model."""
    made: list[Hosted] = []

    def load(code: str, **plan: Any) -> Hosted:
        (tmp_path / "model.py").write_text(RUDE + textwrap.dedent(code))
        context = Context("m", "1", tmp_path, "cpu:0", {})
        given = {"decoupled": False, "sequence": False, "batched": False, "shared": request.param, **plan}
        made.append(Hosted(Plan(context, **given)))
        return made[-1]

    yield load
    for each in made:
        each._forget()


def outcome(call: Callable[[], Any]) -> str:
    """Return what a call of a model ends with, which is an `Exception` at worst."""
    try:
        return repr(call())
    except Exception as error:  # noqa: BLE001 - what is tested
        return said(error)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "code",
    [
        "{0}",
        "class Model:\n    def __init__(self):\n        {0}\n    def infer(self, inputs): ...",
        "class Model:\n    def load(self, context):\n        {0}\n    def infer(self, inputs): ...",
        "class Model:\n    async def load(self, context):\n        {0}\n    def infer(self, inputs): ...",
        "class Model:\n    def infer(self, inputs): ...\n    def __getattr__(self, name):\n        {0}",
        "def __getattr__(name):\n    {0}",
    ],
    ids=["import", "constructor", "load", "async load", "its attributes", "the module's attributes"],
)
def test_what_a_load_raises_is_why_it_cannot_be_loaded(host: Callable[..., Hosted], code: str, end: str) -> None:
    with pytest.raises(CannotLoad) as caught:
        host(code.format(f"raise {end}"))
    assert end.partition("(")[0] in str(caught.value)


def test_an_infer_that_cannot_be_looked_at_is_why_it_cannot_be_loaded(host: Callable[..., Hosted]) -> None:
    with pytest.raises(CannotLoad, match="looking at its class raised ValueError"):
        host("class Model:\n    infer = type")
    with pytest.raises(CannotLoad, match="must define a class Model with a method infer"):
        host("class Model:\n    infer = 7")


BODIES = {
    "infer": "def infer(self, inputs):\n        raise {0}",
    "async infer": "async def infer(self, inputs):\n        raise {0}",
    "an answer's keys": "def infer(self, inputs):\n        return Keys()",
    "an answer's array": "def infer(self, inputs):\n        return dict(y=Array())",
    "an awaitable": "def infer(self, inputs):\n        return Awaitable()",
}
HELPERS = """
from collections.abc import Mapping

class Keys(Mapping):
    def __iter__(self):
        raise {0}
    def __len__(self):
        return 1
    def __getitem__(self, key):
        raise {0}

class Array:
    def __array__(self, *_, **__):
        raise {0}

class Awaitable:
    def __await__(self):
        raise {0}

class Iterable:
    def __iter__(self):
        raise {0}
"""


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("body", list(BODIES))
def test_what_a_run_raises_is_its_failure(host: Callable[..., Hosted], body: str, end: str) -> None:
    hosted = host((HELPERS + "class Model:\n    " + BODIES[body]).format(end))
    for _ in range(2):
        assert outcome(lambda: hosted.infer(X, ModelRequest())).startswith(end.partition("(")[0])


STREAMS = {
    "a generator": "def infer(self, inputs):\n        yield inputs\n        raise {0}",
    "before the first": "def infer(self, inputs):\n        raise {0}\n        yield inputs",
    "an iterable": "def infer(self, inputs):\n        return Iterable()",
    "an answer's array": "def infer(self, inputs):\n        yield dict(y=Array())",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("body", list(STREAMS))
def test_what_a_generator_raises_is_its_failure(host: Callable[..., Hosted], body: str, end: str) -> None:
    hosted = host((HELPERS + "class Model:\n    " + STREAMS[body]).format(end), decoupled=True)
    assert outcome(lambda: list(hosted.stream(X, ModelRequest()))).startswith(end.partition("(")[0])


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("what", ["rows", "step", "close"])
def test_what_turns_and_closing_raise_is_their_failure(host: Callable[..., Hosted], what: str, end: str) -> None:
    code = f"""
    class Model:
        def infer(self, inputs, sequences):
            raise {end}
        def step(self, generations):
            raise {end}
        def close(self):
            raise {end}
    """
    hosted = host(code, decoupled=what == "step", sequence=True)
    turn = ModelTurn(X, ModelRequest(), 1, start=True, end=False, state=None)
    calls = {"rows": lambda: hosted.rows([turn]), "step": lambda: hosted.step([turn]), "close": hosted.close}
    assert outcome(calls[what]).startswith(end.partition("(")[0])
    assert turn.state in (None, {})


def test_an_error_is_said_whatever_it_is() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    class Odd(Exception):
        def __str__(self) -> str:
            return 7  # type: ignore[return-value] # noqa: PLE0307 - a model's

    assert said(Silent()) == "Silent"
    assert said(Odd()) == "Odd"
    assert said(ValueError("\udc80 and \U0001f600")) == "ValueError: \\udc80 and \U0001f600"
