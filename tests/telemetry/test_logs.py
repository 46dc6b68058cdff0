"""Logs: one line per record, text or JSON, identity bound once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from mesh.telemetry import logs


class Stderr:
    """What was written to stderr so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Stderr]:
    """Stderr to read; the logging tree is put back as it was at the end."""
    root, mesh = logging.getLogger(), logging.getLogger("mesh")
    before = (list(root.handlers), root.level, mesh.level)
    yield Stderr(capsys)
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    mesh.setLevel(before[2])


def test_a_text_line_has_time_level_logger_text_and_pairs(stderr: Stderr) -> None:
    logs.configure("info", json=False)
    logs.get("mesh.node").bind(node="a").info("loaded", model="iris", seconds=0.25)
    time, rest = stderr.getvalue().split(" ", 1)
    assert rest == "info mesh.node loaded node=a model=iris seconds=0.25\n"
    assert time.endswith("Z")
    assert len(time) == len("2026-01-01T00:00:00.000Z")


def test_a_value_with_line_breaks_stays_on_one_line(stderr: Stderr) -> None:
    logs.configure("info", json=False)
    logs.get("mesh.x").info("got", text='a "b"\nlevel=error', empty="", number=3)
    assert stderr.getvalue().count("\n") == 1
    assert stderr.getvalue().endswith('got text="a \\"b\\"\\nlevel=error" empty="" number=3\n')


def test_a_json_line_holds_the_same_and_pairs_cannot_replace_the_head(stderr: Stderr) -> None:
    logs.configure("info", json=True)
    logs.get("mesh.node").info("loaded", model="iris", level="mine", path={1}, error=ValueError("no"))
    record = json.loads(stderr.getvalue())
    assert record.pop("time").endswith("Z")
    assert record == {
        "level": "info",
        "logger": "mesh.node",
        "text": "loaded",
        "model": "iris",
        "level_": "mine",
        "path": [1],
        "error": "no",
    }


@pytest.mark.parametrize("as_json", [False, True])
def test_an_exception_is_one_line_with_its_traceback(stderr: Stderr, *, as_json: bool) -> None:
    logs.configure("info", json=as_json)
    try:
        int("x")
    except ValueError:
        logs.get("mesh.node").exception("broke", model="iris")
    assert stderr.getvalue().count("\n") == 1
    assert "ValueError: invalid literal" in stderr.getvalue()
    assert "Traceback (most recent call last)" in stderr.getvalue()


def test_a_value_json_has_no_form_for_does_not_lose_the_line(stderr: Stderr) -> None:
    logs.configure("info", json=True)
    logs.get("mesh.node").info("odd", text="\ud800")
    assert stderr.getvalue().count("\n") == 1
    assert "odd" in stderr.getvalue()


def test_levels_below_the_chosen_one_write_nothing(stderr: Stderr) -> None:
    logs.configure("warning", json=False)
    log = logs.get("mesh.node")
    log.debug("no")
    log.info("no")
    log.warning("yes")
    log.error("yes")
    assert [line.split()[3] for line in stderr.getvalue().splitlines()] == ["yes", "yes"]


def test_a_second_configure_replaces_the_first(stderr: Stderr) -> None:
    logs.configure("error", json=False)
    logs.configure("debug", json=True)
    logs.get("mesh.node").debug("once")
    assert [json.loads(line)["text"] for line in stderr.getvalue().splitlines()] == ["once"]


def test_other_packages_speak_from_warning_up(stderr: Stderr) -> None:
    logs.configure("debug", json=False)
    logging.getLogger("some.library").info("quiet")
    logging.getLogger("some.library").warning("heard %s", "well")
    assert stderr.getvalue().endswith("warning some.library heard well\n")
    assert stderr.getvalue().count("\n") == 1


def test_an_unknown_level_is_refused_with_the_choice() -> None:
    with pytest.raises(ValueError, match="expected a log level of debug, info, warning, error, got 'loud'"):
        logs.configure("loud", json=False)


def test_bound_pairs_do_not_leak_into_the_parent(stderr: Stderr) -> None:
    logs.configure("info", json=False)
    parent = logs.get("mesh.node").bind(node="a")
    child = parent.bind(model="iris", node="b")
    parent.info("parent")
    child.info("child")
    assert [line.split(" ", 3)[3] for line in stderr.getvalue().splitlines()] == [
        "parent node=a",
        "child node=b model=iris",
    ]
    assert repr(child) == "<Logger mesh.node bound={'node': 'b', 'model': 'iris'}>"
