from __future__ import annotations

from pathlib import Path

import pytest

from mesh.core.types import Dtype, Scaling, TensorSpec
from mesh.node.repository import Scanner, labels_of


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
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("a file was read again"))
    assert scanner.scan() == before
    assert folder.exists()
