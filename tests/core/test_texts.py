from __future__ import annotations

from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.errors import InvalidRequest
from mesh.core.texts import MAX_BYTES, MAX_CHARACTERS, shortened, status_text
from mesh.wire.grpc_framing import percent_decoded, percent_encoded

TEXTS = st.builds(
    lambda part, times: (part * (times + 1))[:30_000], st.text(min_size=1, max_size=20), st.integers(0, 9000)
)


@given(TEXTS)
def test_a_status_text_fits_as_it_travels_and_keeps_its_beginning_and_end(text: str) -> None:
    cut = status_text(text)
    travelling = percent_encoded(text)
    assert len(travelling) <= MAX_BYTES
    assert percent_decoded(travelling) == cut.encode("utf-8", "replace").decode()
    if cut != text:
        head, mark, tail = cut.partition("... [")
        assert "characters cut] ..." in mark + tail
        assert text.startswith(head)
        assert text.endswith(tail.partition("cut] ...")[2])
    else:
        assert len(quote(text, safe="", errors="replace")) <= 3 * MAX_BYTES


@given(st.text(max_size=MAX_BYTES // 12))
def test_a_short_text_stays_as_it_is(text: str) -> None:
    assert status_text(text) is text


def test_a_text_that_just_fits_stays_and_one_byte_more_is_cut() -> None:
    fits = "x" * (MAX_BYTES - 3) + "%"
    assert status_text(fits) == fits
    assert "characters cut" in status_text("x" + fits)
    assert "characters cut" in status_text("é" * (MAX_BYTES // 6 + 1))
    assert status_text("é" * (MAX_BYTES // 6)) == "é" * (MAX_BYTES // 6)


def test_what_was_left_out_is_counted() -> None:
    cut = shortened("a" * 1000 + "b" * 1000, 160)
    assert cut == "a" * 75 + "... [1900 characters cut] ..." + "b" * 25
    assert len(cut) <= 160


def test_an_error_keeps_no_more_of_what_a_caller_wrote_than_it_may_say() -> None:
    error = InvalidRequest(f"unexpected inference input '{'n' * 70_000}' for model 'iris'")
    assert len(error.message) <= MAX_CHARACTERS
    assert str(error) == error.message
    assert error.message.endswith("n' for model 'iris'")
