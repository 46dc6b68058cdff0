from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.types import Dtype, Scaling, TensorSpec
from mesh.node import folder as folder_module
from mesh.node import repository
from mesh.node.repository import Scanner, folder_of, labels_of
from mesh.registry import records
from mesh.registry.keys import model_key, split_model_key


def model(
    root: Path, name: str = "m", *, yaml: str | None = None, version: str = "1", file: str = "model.onnx"
) -> Path:
    folder = root / name / version
    folder.mkdir(parents=True)
    (folder / file).write_bytes(b"content")
    if yaml is not None:
        (folder.parent / "model.yaml").write_text(yaml)
    return folder


def refusal(root: Path) -> str:
    scan = Scanner([root]).scan()
    assert not scan.models
    (why,) = scan.refused.values()
    return why


def test_a_folder_with_an_onnx_file_needs_no_configuration(tmp_path: Path) -> None:
    model(tmp_path)
    (found,) = Scanner([tmp_path]).scan().models.values()
    assert (found.name, found.version, found.runtime, found.size_bytes) == ("m", "1", "onnx", 7)
    assert found.source == (tmp_path / "m" / "1").resolve().as_uri()


def test_model_yaml_says_the_rest(tmp_path: Path) -> None:
    text = "max_batch_size: 4\nnode_labels: {zone: a}\ninputs: [{name: x, dtype: FP32, shape: [-1, 2]}]\n"
    model(tmp_path, yaml=text, file="model.py")
    (found,) = Scanner([tmp_path]).scan().models.values()
    assert (found.runtime, found.max_batch_size, dict(found.node_labels)) == ("python", 4, {"zone": "a"})
    assert found.inputs == (TensorSpec("x", Dtype.FP32, (-1, 2)),)


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        ("max_batchsize: 4", "max_batchsize"),
        ("runtime: torch", "runtime"),
        ("max_batch_size: -1", "must not be negative"),
        ("min_copies: -1", "min_copies must be 0 or more, got -1"),
        ("min_copies: 1\nscaling: {min_copies: 2}", "min_copies is 1 and scaling.min_copies 2; give one of them"),
        ("scaling: {min_copies: 3, max_copies: 2}", "max_copies must be 0 (no limit) or at least min_copies, 3, got 2"),
        ("scaling: {target: 0}", "scaling.target must be more than 0, got 0"),
        ("scaling: {target_utilization: 70}", "must be more than 0 and at most 1, got 70"),
        ("scaling: {window_s: 5}", "panic_window_s must be more than 0 and at most window_s, 5"),
        ("scaling: {maxCopies: 2}", "scaling has no maxCopies; it has idle_s, max_copies"),
        ("scaling: {scale_to_zero: never}", "scaling.scale_to_zero must be pressure or idle, got never"),
        ("scaling: {scale_to_zero: [idle]}", "scaling.scale_to_zero must be pressure or idle, got ['idle']"),
        ("min_copies: 0\nscaling: {min_copies: 2}", "min_copies is 0 and scaling.min_copies 2; give one of them"),
        ("scaling: {target: .nan}", "scaling.target must be more than 0, got nan"),
        ("scaling: {target: fast}", "scaling: Expected `float`, got `str` - at `$.target`"),
        ("scaling: {window_s: .inf}", "scaling.window_s must be more than 0 and at most 3600, got inf"),
        ("scaling: {panic_threshold: 1}", "scaling.panic_threshold must be more than 1, got 1"),
        ("scaling: {idle_s: 0}", "scaling.idle_s must be more than 0, got 0"),
        ("inputs: [{name: x, dtype: FLOAT, shape: [1]}]", "dtype"),
        ("inputs: [{name: x, dtype: FP32, shape: [-2]}]", "a size is -1 (any) or 0 and more"),
        ("max_batch_size: 2\ninputs: [{name: x, dtype: FP32, shape: [2]}]", "with max_batch_size it starts with -1"),
        ("inputs: [", "model.yaml"),
    ],
)
def test_a_wrong_configuration_is_refused_with_a_sentence(tmp_path: Path, yaml: str, text: str) -> None:
    model(tmp_path, yaml=yaml)
    assert text in refusal(tmp_path)


@pytest.mark.parametrize(
    "yaml", ["min_copies: 2", "scaling: {min_copies: 2}", "min_copies: 2\nscaling: {min_copies: 2}"]
)
def test_min_copies_is_short_for_the_one_of_scaling(tmp_path: Path, yaml: str) -> None:
    model(tmp_path, yaml=yaml)
    (found,) = Scanner([tmp_path]).scan().models.values()
    assert found.scaling == Scaling(min_copies=2)


def test_a_version_without_a_model_file_is_refused(tmp_path: Path) -> None:
    model(tmp_path, file="notes.txt")
    assert refusal(tmp_path) == "version 1 has none of model.onnx, model.py"


def test_a_configured_model_without_a_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.yaml").write_text("runtime: onnx")
    assert "it has no version" in refusal(tmp_path)


def test_other_folders_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / ".git").mkdir()
    scan = Scanner([tmp_path]).scan()
    assert (dict(scan.models), dict(scan.refused)) == ({}, {})


def test_one_bad_model_leaves_the_others(tmp_path: Path) -> None:
    model(tmp_path, "good")
    model(tmp_path, "bad", yaml="nonsense: 1")
    scan = Scanner([tmp_path]).scan()
    assert [name for name, _ in scan.models] == ["good"]
    assert list(scan.refused) == [str((tmp_path / "bad").resolve())]


def test_the_first_repository_wins(tmp_path: Path) -> None:
    for root in ("one", "two"):
        model(tmp_path / root)
    (found,) = Scanner([tmp_path / "one", tmp_path / "two"]).scan().models.values()
    assert "/one/" in found.source


def test_a_missing_repository_is_told(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "nowhere")


def test_the_digest_changes_with_files_and_configuration_only(tmp_path: Path) -> None:
    folder = model(tmp_path)
    scanner = Scanner([tmp_path])

    def digest() -> str:
        (found,) = scanner.scan().models.values()
        return found.digest

    first = digest()
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"1")
    assert digest() == first
    (folder / "model.onnx").write_bytes(b"changed!")
    second = digest()
    (tmp_path / "m" / "model.yaml").write_text("max_queue_size: 2")
    third = digest()
    assert len({first, second, third}) == 3
    (tmp_path / "m" / "model.yaml").write_text("max_queue_size: 2\nscaling: {min_copies: 2, max_copies: 4}")
    assert digest() == third, "copies are not loaded again when there are to be more of them"


def test_labels_are_read_and_part_of_what_a_model_is(tmp_path: Path) -> None:
    folder = model(tmp_path)
    scanner = Scanner([tmp_path])
    before = scanner.scan()
    assert labels_of(folder) == ()
    (tmp_path / "m" / "labels.txt").write_text("cat\ndog\n")
    assert labels_of(folder) == ("cat", "dog")
    assert scanner.scan() != before


def test_a_scan_without_changes_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model(tmp_path)
    scanner = Scanner([tmp_path])
    before = scanner.scan()
    monkeypatch.setattr(repository, "digest_of", lambda *_: pytest.fail("a file was read again"))
    assert scanner.scan() == before
    assert folder.exists()


NOT_UTF8 = os.fsdecode(b"caf\xe9")


def bomb(levels: int) -> str:
    lines = ["l0: &l0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "scaling: {" + ", ".join(lines) + "}"


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        ("parameters: {trained: 2026-02-30}", "model.yaml: day is out of range for month"),
        ("parameters: {trained: 2026-02-28}", "Expected `str`, got `date`"),
        ("max_queue_size: 99999999999999999999999", "is no number of 64 bits"),
        ("inputs: [{name: x, dtype: FP32, shape: [99999999999999999999999]}]", "is no number of 64 bits"),
        (bomb(9), "more than 10000 values, counted as often as aliases repeat them"),
        ("scaling: &a {x: *a}", "more than 10000 values"),
        ("scaling: &a [*a]", "more than 10000 values"),
        ("scaling: {x: " + "[" * 5000, "model.yaml"),
        ("a: " * 3 + "1", "model.yaml: mapping values are not allowed"),
        ("scaling: {x: " + "[" * 100 + "]" * 100 + "}", "values are nested more than 64 deep"),
        ("? [a]: 1\n: 2", "model.yaml"),
        ("parameters: {a: &a " + "x" * 100_000 + ", b: [" + "*a, " * 100 + "]}", "more than 10000 values"),
        ("platform: x\0", "model.yaml"),
        ("#" * 300_000, "model.yaml is longer than 262144 bytes"),
        ("- 1", "Expected `object`, got `array`"),
        ("--- 1\n--- 2", "model.yaml"),
        ("!!python/object/apply:os.system [exit]", "model.yaml"),
    ],
)
def test_a_text_that_no_record_can_be_made_of_is_refused(tmp_path: Path, yaml: str, text: str) -> None:
    model(tmp_path, yaml=yaml)
    model(tmp_path, "good")
    scan = Scanner([tmp_path]).scan()
    assert [name for name, _ in scan.models] == ["good"]
    (why,) = scan.refused.values()
    assert text in why


def test_files_with_names_that_are_no_text_are_part_of_a_model(tmp_path: Path) -> None:
    folder = model(tmp_path)
    scanner = Scanner([tmp_path])
    before = scanner.scan()
    (folder / NOT_UTF8).write_bytes(b"1")
    (folder / "line\nfeed").write_bytes(b"2")
    with_it = scanner.scan()
    (folder / NOT_UTF8).write_bytes(b"changed")
    digests = {next(iter(each.models.values())).digest for each in (before, with_it, scanner.scan())}
    assert len(digests) == 3


@pytest.mark.parametrize("name", [NOT_UTF8, "line\nfeed", " spaced", "tab\t"])
def test_a_folder_whose_name_no_model_can_have_leaves_the_others(tmp_path: Path, name: str) -> None:
    model(tmp_path, "good")
    model(tmp_path, name)
    scanner = Scanner([tmp_path])
    scan = scanner.scan()
    assert [found for found, _ in scan.models] == ["good"]
    ((path, why),) = scan.refused.items()
    assert "its name cannot be a model's" in why
    scanner.label(path).encode()


def test_a_repository_in_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = model(tmp_path / NOT_UTF8)
    (found,) = Scanner([tmp_path / NOT_UTF8]).scan().models.values()
    assert folder_of(found) == folder


def test_what_is_no_file_is_neither_read_nor_waited_for(tmp_path: Path) -> None:
    folder = model(tmp_path, "odd")
    model(tmp_path, "good")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "up").symlink_to(tmp_path)
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "nowhere").symlink_to("nothing")
    listener = socket.socket(socket.AF_UNIX)
    with listener, contextlib.chdir(folder):
        listener.bind("s")
    assert {name for name, _ in Scanner([tmp_path]).scan().models} == {"odd", "good"}


@pytest.mark.parametrize("name", ["model.yaml", "labels.txt"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop", "long"])
def test_what_stands_for_a_text_and_is_none_leaves_that_model_out(tmp_path: Path, name: str, kind: str) -> None:
    model(tmp_path, "odd")
    model(tmp_path, "good")
    path = tmp_path / "odd" / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(name)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    scan = Scanner([tmp_path]).scan()
    assert [found for found, _ in scan.models] == ["good"]
    assert list(scan.refused) == [str(tmp_path.resolve() / "odd")]


def test_a_version_of_more_than_anybody_means_is_refused(tmp_path: Path) -> None:
    deep = model(tmp_path, "deep").joinpath(*["d"] * 70)
    deep.mkdir(parents=True)
    with (model(tmp_path, "large") / "core").open("wb") as file:
        file.truncate(folder_module.MAX_BYTES)
    refused = Scanner([tmp_path]).scan().refused.values()
    assert [why.split(" than ")[0] for why in refused] == ["its folders are nested more", "its files have more"]


def test_an_entry_that_cannot_be_looked_at_leaves_the_others(tmp_path: Path) -> None:
    model(tmp_path, "good")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "long").symlink_to("x" * 300)
    scan = Scanner([tmp_path]).scan()
    assert ([name for name, _ in scan.models], dict(scan.refused)) == (["good"], {})


NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: b"/" not in name and b"\0" not in name).map(os.fsdecode)
YAML = st.one_of(
    st.binary(max_size=80),
    st.text(alphabet="ab:{}[]&*!|>-?\"'#%@, \n\t012.", max_size=80).map(str.encode),
    st.tuples(
        st.sampled_from(["parameters", "scaling", "sequence", "inputs", "max_batch_size", "platform", "generation"]),
        st.sampled_from(
            ["2026-02-30", ".nan", "1e999", "0x" + "f" * 30, "!!binary x", "*a", "&a [*a]", "{a: &b [1], c: *b}", "~"]
        ),
    ).map(lambda pair: f"{pair[0]}: {{x: {pair[1]}}}\n{pair[0]}: {pair[1]}".encode()),
)


@settings(max_examples=200, deadline=None)
@given(name=NAMES, file=NAMES, version=st.one_of(st.just("1"), NAMES), yaml=YAML, labels=st.binary(max_size=20))
def test_whatever_is_in_a_folder_a_scan_finds_the_others(
    name: str, file: str, version: str, yaml: bytes, labels: bytes
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch).resolve()
        model(root, "a good one")
        with contextlib.suppress(FileExistsError, IsADirectoryError):
            (root / name / version).mkdir(parents=True, exist_ok=True)
            (root / name / "model.yaml").write_bytes(yaml)
            (root / name / "labels.txt").write_bytes(labels)
            (root / name / version / "model.onnx").write_bytes(b"1")
            (root / name / version / file).write_bytes(b"1")
        scanner = Scanner([root])
        scan = scanner.scan()
        assert "a good one" in [found for found, _ in scan.models]
        for path, why in scan.refused.items():
            (scanner.label(path) + why).encode()
        for found in scan.models.values():
            assert records.decode_model(records.encode(found)) == found
            assert split_model_key(model_key(found.name, found.version)) == (found.name, found.version)
