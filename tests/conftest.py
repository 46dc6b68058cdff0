"""What every test may use. Fixtures live under tests/fixtures, one idea a file."""

from __future__ import annotations

pytest_plugins = ["tests.fixtures.etcd"]
