"""What a load is found to take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from mesh.core.placement.ledger import MIN_BYTES, Ledger
from mesh.core.types import Device, DeviceKind, ModelName, ModelVersion, Version
from mesh.node.capacity import Account
from mesh.node.growth import Growths

MIB = 1024 * 1024


def account(capacity: int = 1000, index: int = 0) -> Account:
    device = Device(DeviceKind.GPU, index, "", capacity * MIB, capacity * MIB)
    return Account(device, Ledger(capacity * MIB))


def model(size: int = 1, loaded: int = 0) -> ModelVersion:
    return ModelVersion(ModelName("m"), Version("1"), "onnx", "file:///m/1", "d", size * MIB, loaded_bytes=loaded * MIB)


def growths(*used: int) -> Growths:
    """Return what sees `used` MiB, one after the other."""
    values: Iterator[int] = iter(used)
    return Growths(lambda _: next(values) * MIB)


def test_a_load_takes_what_the_device_grew_by() -> None:
    with growths(100, 140).of(account()) as growth:
        pass
    assert growth.of_load(model()) == 40 * MIB


def test_it_is_never_less_than_the_files_or_a_session() -> None:
    with growths(100, 90).of(account()) as growth:
        pass
    assert growth.of_load(model(size=30)) == 30 * MIB
    assert growth.of_load(model(size=0)) == MIN_BYTES


def test_what_overlapped_is_never_more_than_the_device_and_what_did_not_is_what_it_is() -> None:
    with growths(100, 109).of(account(capacity=5)) as growth:
        pass
    assert growth.of_load(model()) == 9 * MIB
    growth.overlapped = True
    assert growth.of_load(model()) == 5 * MIB


def test_of_two_loads_at_once_what_was_measured_before_counts_if_it_is_less() -> None:
    seen, shared = growths(100, 100, 300, 300), account()
    with ExitStack() as stack:
        one = stack.enter_context(seen.of(shared))
        two = stack.enter_context(seen.of(shared))
    assert one.of_load(model(loaded=50)) == 50 * MIB
    assert two.of_load(model(loaded=250)) == 200 * MIB
    assert two.of_load(model()) == 200 * MIB, "an upper bound is what is known of the first load"


def test_loads_one_after_another_or_on_other_devices_do_not_overlap() -> None:
    seen = growths(0, 10, 10, 10, 40, 40)
    first, other = account(), account(index=1)
    with seen.of(first) as growth:
        pass
    assert growth.of_load(model(loaded=5)) == 10 * MIB
    with seen.of(first) as one, seen.of(other) as two:
        pass
    assert (one.of_load(model(loaded=5)), two.of_load(model(loaded=5))) == (30 * MIB, 30 * MIB)
