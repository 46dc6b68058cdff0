"""What several end-to-end tests start from."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fixtures.etcd import EtcdServer
from tests.fixtures.tools import need


@pytest.fixture
def etcd(new_etcd: Callable[..., EtcdServer]) -> EtcdServer:
    """A running etcd of this test's own."""
    need("etcd")
    server = new_etcd()
    server.launch_and_wait()
    return server
