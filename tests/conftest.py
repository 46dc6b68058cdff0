"""What every test may use. Fixtures live under tests/fixtures, one idea a file."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("mesh", deadline=None)  # A busy machine is no fault of what is tested.
settings.load_profile("mesh")

pytest_plugins = ["tests.fixtures.etcd"]
