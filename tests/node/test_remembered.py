"""A scanner that remembers finds what one that reads everything finds, whatever was done to the folders."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.node import repository
from mesh.node.model_yaml import ModelYaml
from mesh.node.repository import Scanner


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(autouse=True)
def believed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inode and ctime tell changes apart here: nobody needs to wait until times are 2 s old."""
    monkeypatch.setattr("mesh.node.remembered.SETTLED_NS", 0)


def swap_version(root: Path, name: str, text: str) -> None:
    """Publish a version as Kubernetes does: the version is a link, which is replaced by another one."""
    hidden = root / f".data-{name}-{text}"
    shutil.rmtree(hidden, ignore_errors=True)
    write(hidden / "model.onnx", text)
    version, fresh = root / name / "1", root / name / ".fresh"
    version.parent.mkdir(parents=True, exist_ok=True)
    if version.is_dir() and not version.is_symlink():
        shutil.rmtree(version)
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(hidden)
    fresh.replace(version)


def rename(root: Path, name: str, _text: str) -> None:
    if (root / name).is_dir():
        shutil.rmtree(root / "renamed", ignore_errors=True)
        (root / name).rename(root / "renamed")


STEPS: dict[str, Callable[[Path, str, str], None]] = {
    "write": lambda root, name, text: write(root / name / "1" / "model.onnx", text),
    "deeper": lambda root, name, text: write(root / name / "1" / "more" / "weights", text),
    "another": lambda root, name, text: write(root / name / "2" / "model.onnx", text),
    "config": lambda root, name, text: write(root / name / "model.yaml", f"max_queue_size: {len(text)}\n"),
    "bad config": lambda root, name, _: write(root / name / "model.yaml", "nonsense: 1\n"),
    "labels": lambda root, name, text: write(root / name / "labels.txt", text),
    "gone": lambda root, name, _: shutil.rmtree(root / name, ignore_errors=True),
    "version gone": lambda root, name, _: shutil.rmtree(root / name / "2", ignore_errors=True),
    "rename": rename,
    "swap": swap_version,
}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.sampled_from(["a", "b"]), st.sampled_from(["x", "yy", "zzz"])),
        max_size=12,
    )
)
def test_a_scan_from_memory_is_a_whole_scan(steps: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scanner = Scanner([root])
        for what, name, text in steps:
            STEPS[what](root, name, text)
            assert scanner.scan() == Scanner([root]).scan(), (what, name, text)


def test_a_folder_that_looks_as_before_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a" / "1" / "model.onnx", "x")
    write(tmp_path / "b" / "1" / "model.onnx", "x")
    scanner = Scanner([tmp_path])
    before = scanner.scan()
    read: list[str] = []
    whole = repository._config

    def counting(data: bytes) -> ModelYaml:
        read.append("config")
        return whole(data)

    monkeypatch.setattr(repository, "_config", counting)
    assert scanner.scan() == before
    assert read == []
    write(tmp_path / "b" / "labels.txt", "one\n")
    assert scanner.scan() != before
    assert read == ["config"]


def test_what_changed_only_just_now_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two changes within one step of the clock look alike, so that a look is believed only when it is older."""
    monkeypatch.setattr("mesh.node.remembered.SETTLED_NS", 3600 * 10**9)
    write(tmp_path / "a" / "1" / "model.onnx", "x")
    scanner = Scanner([tmp_path])
    scanner.scan()
    assert scanner._known == {}
    monkeypatch.setattr(time, "time_ns", lambda real=time.time_ns: real() + 7200 * 10**9)
    scanner.scan()
    assert set(scanner._known) == {tmp_path / "a"}
