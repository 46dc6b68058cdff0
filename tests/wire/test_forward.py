"""Forwarded headers on their way to a node: whatever was written is read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.wire.forward import read, written
from mesh.wire.transport import FORWARD_HEADER

NAMES = st.text(st.sampled_from("abcxyz0189!#$%&'*+-.^_`|~"), min_size=1, max_size=20)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.dictionaries(NAMES, TEXTS, max_size=5))
def test_what_is_written_is_read(values: dict[str, str]) -> None:
    fields = written(values)
    assert all(name == FORWARD_HEADER for name, _ in fields)
    texts = [value for _, value in fields if isinstance(value, str)]
    assert len(texts) == len(values)
    # As gRPC wants values to be: printable ASCII, and no blank at an end, which HTTP would take off.
    assert all(0x21 <= ord(each) <= 0x7E for text in texts for each in text)
    assert read(texts) == values
