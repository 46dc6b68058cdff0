"""How a client reads the addresses of its routers."""

from __future__ import annotations

import pytest

from mesh_client import Client
from mesh_client._common import addresses_of


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("a:1", ["a:1"]),
        ("a:1,b:2", ["a:1", "b:2"]),
        (" a:1 , b:2 ,", ["a:1", "b:2"]),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", ["ipv4:127.0.0.1:1,127.0.0.1:2"]),
        ("dns:///routers:8001", ["dns:///routers:8001"]),
        ("unix:/tmp/a,b", ["unix:/tmp/a,b"]),
    ],
)
def test_commas_part_routers_but_not_what_is_grpcs_own(said: str, expected: list[str]) -> None:
    assert addresses_of(said) == expected


@pytest.mark.parametrize("said", ["", " , "])
def test_no_address_is_told(said: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        Client(said)
