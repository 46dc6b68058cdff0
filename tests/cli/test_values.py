"""Inputs of `mesh infer`: from text and files to arrays, and answers back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.cli.values import array, parameter, plain, split_pair
from mesh.core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "dtype", "expected"),
    [
        ("[[5.1, 3.5]]", "FP32", np.array([[5.1, 3.5]], np.float32)),
        ("[[1, 2]]", "FP64", np.array([[1, 2]], np.float64)),
        ("7", "INT64", np.array(7, np.int64)),
        ("[255]", "UINT8", np.array([255], np.uint8)),
        ("[18446744073709551615]", "UINT64", np.array([2**64 - 1], np.uint64)),
        ("[true, false]", "BOOL", np.array([True, False])),
        ("[]", "FP32", np.array([], np.float32)),
        ("[1.5]", "FP16", np.array([1.5], np.float16)),
    ],
)
def test_json_becomes_an_array_of_the_models_type(text: str, dtype: str, expected: Any) -> None:
    found = array("x", text, dtype)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_texts_become_bytes() -> None:
    found = array("x", '[["a"], ["é"]]', "BYTES")
    assert found.dtype == object
    assert found.tolist() == [[b"a"], ["é".encode()]]


@pytest.mark.parametrize(
    ("text", "dtype", "sentence"),
    [
        ("[1", "FP32", "input 'x' must be JSON"),
        ("red car", "BYTES", "quote texts"),
        ("[[1, 2], [3]]", "FP32", "rows of the JSON have different lengths"),
        ('["a"]', "FP32", "expected numbers in JSON"),
        ("[1]", "BOOL", "expected true and false in JSON"),
        ("[true]", "FP32", "expected numbers in JSON"),
        ("[256]", "UINT8", "expected whole numbers from 0 to 255"),
        ("[-1]", "UINT64", "expected whole numbers from 0"),
        ("[1.5]", "INT32", "expected whole numbers"),
        ("[99999999999999999999]", "INT64", "expected"),
        ("[1]", "BYTES", "expected JSON lists of texts"),
        ('[["a", "b"], ["c"]]', "BYTES", "expected JSON lists of texts of equal length"),
        ("[1]", "BF16", "cannot be written as text"),
        ("@/no/such.json", "FP32", "expected a file at /no/such.json, found none"),
    ],
)
def test_what_does_not_fit_is_one_sentence(text: str, dtype: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        array("x", text, dtype)
    assert sentence in caught.value.message
    assert "\n" not in caught.value.message


def test_files_hold_json_or_numpy(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float32).reshape(1, 4)
    np.save(tmp_path / "x.npy", values)
    (tmp_path / "x.json").write_text("[[0, 1, 2, 3]]")
    assert np.array_equal(array("x", f"@{tmp_path}/x.npy", "FP32"), values)
    assert np.array_equal(array("x", f"@{tmp_path}/x.json", "FP32"), values)
    with pytest.raises(InvalidRequest, match="holds float32: convert it first"):
        array("x", f"@{tmp_path}/x.npy", "FP64")
    (tmp_path / "bad.npy").write_text("nonsense")
    with pytest.raises(InvalidRequest, match=r"is not a \.npy file that can be read"):
        array("x", f"@{tmp_path}/bad.npy", "FP64")


def test_a_numpy_file_of_texts_becomes_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array([["a"], ["bc"]]))
    assert array("x", f"@{tmp_path}/t.npy", "BYTES").tolist() == [[b"a"], [b"bc"]]


def test_parameters_are_bools_numbers_or_texts() -> None:
    assert [parameter(each) for each in ("true", "3", "1.5", "abc", '"3"', "[1]", "")] == [
        True, 3, 1.5, "abc", "3", "[1]", "",
    ]  # fmt: skip


def test_pairs_split_at_the_first_equals_sign() -> None:
    assert split_pair("x=a=b", "--input") == ("x", "a=b")
    for text in ("x", "=1"):
        with pytest.raises(InvalidRequest, match="--input must be name=value"):
            split_pair(text, "--input")


def test_answers_become_what_json_can_hold() -> None:
    assert plain(np.array([[1.5]], np.float32)) == [[1.5]]
    assert plain(np.array([[0.1, 1e-20, 3e30], [-0.0, 7, np.inf]], np.float32)) == [[0.1, 1e-20, 3e30], [0, 7, np.inf]]
    assert plain(np.array(0.5, np.float16)) == 0.5
    assert plain(np.zeros((2, 0), np.float32)) == [[], []]
    assert plain(np.array([b"a", b"\xff"], dtype=object)) == ["a", "\\xff"]
