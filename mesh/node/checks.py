"""What a load found out, against what model.yaml and the registry say."""

from __future__ import annotations

from mesh.core.errors import LoadFailed
from mesh.core.types import ModelVersion
from mesh.core.view import ClusterView
from mesh.node.runtimes.base import Loaded

FAR_OFF_BYTES = 8 * 1024 * 1024
"""A record of a size in memory may be this far off, or by half, before it is written again."""


def check_batch_axis(model: ModelVersion, loaded: Loaded) -> None:
    """Raise `LoadFailed` when requests could not be joined as model.yaml says they can."""
    if not model.max_batch_size:
        return
    fixed = next((spec for spec in loaded.inputs if spec.shape[:1] != (-1,)), None)
    if fixed is not None:
        raise LoadFailed(
            f"failed to load '{model.name}', it has max_batch_size {model.max_batch_size}, so input '{fixed.name}' "
            f"must begin with an axis of any size; it is {list(fixed.shape)}: export it so, or set max_batch_size to 0"
        )


def lacks(view: ClusterView, model: ModelVersion) -> bool:
    """Tell whether the record of these very files does not say what a load found out: signature and size in memory.

    A size is corrected when it is far off: measurements differ a little from load to load.
    """
    record = view.models.get(model.name, {}).get(model.version)
    if record is None or record.digest != model.digest:
        return False
    off = abs(record.loaded_bytes - model.loaded_bytes) > max(FAR_OFF_BYTES, record.loaded_bytes // 2)
    return not (record.inputs and record.outputs and record.loaded_bytes) or off
