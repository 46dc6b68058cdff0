"""Which headers become parameters: by a pattern, never those that steer the server, and text alone."""

from __future__ import annotations

import pytest

from mesh.core.errors import InvalidRequest
from mesh.core.forwarding import NOTHING, RESERVED, forwarded, header_pattern

HEADERS: tuple[tuple[str, str | bytes], ...] = (
    ("x-tenant", "acme"),
    ("x-user", "ann"),
    ("my-x-tenant", "far"),
    ("trace-bin", b"\0\1"),
    ("mesh-model", "other"),
    ("grpc-timeout", "1S"),
    ("triton_grpc_error", "true"),
)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", {}),
        ("x-tenant", {"x-tenant": "acme", "my-x-tenant": "far"}),
        ("^x-tenant$", {"x-tenant": "acme"}),
        ("X-Tenant", {"x-tenant": "acme", "my-x-tenant": "far"}),
        ("(?-i)X-Tenant", {}),
        ("(?-i)^x-user", {"x-user": "ann"}),
        (".*", {"x-tenant": "acme", "x-user": "ann", "my-x-tenant": "far"}),
        ("nothing", {}),
    ],
)
def test_a_pattern_is_searched_for_in_names(pattern: str, expected: dict[str, str]) -> None:
    assert forwarded(header_pattern(pattern), HEADERS) == expected


def test_nothing_is_made_for_a_call_without_such_headers() -> None:
    assert forwarded(None, HEADERS) is NOTHING
    assert forwarded(header_pattern("absent"), HEADERS) is NOTHING


@pytest.mark.parametrize("name", [*sorted(RESERVED), "triton_enable_empty_final_response", "mesh_forget"])
def test_a_header_cannot_stand_in_for_a_parameter_that_steers_the_server(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"Header '{name}' is reserved for Triton usage and cannot be forwarded."):
        forwarded(header_pattern(".*"), [(name, "1")])
    assert forwarded(header_pattern("^x-"), [(name, "1")]) == {}


def test_the_last_of_two_with_one_name_counts() -> None:
    assert forwarded(header_pattern("x"), [("x", "1"), ("x", "2")]) == {"x": "2"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("plain", "plain"), ("é".encode(), "é"), ("é".encode().decode("latin-1"), "é"), (b"\xe9", "é"), ("\xe9", "é")],
)
def test_values_are_utf8_or_else_latin1(value: str | bytes, expected: str) -> None:
    assert forwarded(header_pattern("x"), [("x", value)]) == {"x": expected}


@pytest.mark.parametrize("text", ["(", "[a", "*"])
def test_what_is_no_pattern_is_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="expected a regular expression for names of headers, got "):
        header_pattern(text)
