"""Tables and sizes for people."""

from __future__ import annotations

import pytest

from mesh.cli.tables import milliseconds, short, size, table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("name", "n"), [("iris", "1"), ("text_features", "22")]) == (
        "name           n\niris           1\ntext_features  22"
    )


def test_a_table_without_rows_is_its_header() -> None:
    assert table(("name", "state"), []) == "name  state"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 1024, "1.5 MiB"), (2**50, "1024.0 TiB")],
)
def test_sizes_read_as_people_say_them(count: int, expected: str) -> None:
    assert size(count) == expected


def test_times_are_milliseconds() -> None:
    assert [milliseconds(each) for each in (0.00123, 0.5)] == ["1.23 ms", "500 ms"]


def test_long_texts_are_cut_to_one_line() -> None:
    assert short("a\n b") == "a b"
    assert short("x" * 100, 10) == "xxxxxxx..."
