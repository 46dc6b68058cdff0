"""From the name and version a caller gave to the version that answers.

Error texts are Triton's, because clients match on them.
"""

from __future__ import annotations

from mesh.core.errors import InvalidRequest, NamesPipeline, UnknownModel
from mesh.core.traffic.unknown import unknown
from mesh.core.types import ModelName, ModelVersion, Version
from mesh.core.view import ClusterView


def resolve(view: ClusterView, name: str, version: str) -> ModelVersion:
    """Return the record of `version` of `name`, or of its latest version when `version` is empty. O(versions).

    Raises `NamesPipeline` for the name of a pipeline, `UnknownModel` for a name or version that is not there and for
    one that an operator unloaded, and `InvalidRequest` for a version that is no number while none is held by that text.
    """
    model = ModelName(name)
    held = view.models.get(model)
    if held is None:
        if name in view.pipelines:
            raise NamesPipeline(f"'{name}' is a pipeline and no model")
        raise unknown(view, name)
    if version and Version(version) not in held:
        if not version.isdecimal():
            raise InvalidRequest(f"failed to get model version from specified version string '{version}'")
        raise unknown(view, name, version)
    found = view.resolve(model, Version(version))
    if found is None or view.is_off((model, found.version)):
        raise UnknownModel(f"Request for unknown model: '{name}' has no available versions; load it to use it again")
    return found
