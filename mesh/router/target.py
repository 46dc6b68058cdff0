"""What the hot path knows of a model before a request for it comes: made once per view, not once per request."""

from __future__ import annotations

from typing import Final

from mesh.api.clock import steady_s
from mesh.core.errors import InvalidRequest, MeshError, NamesPipeline
from mesh.core.forwarding import NOTHING, Pattern, forwarded
from mesh.core.pipeline.signatures import pipeline_model
from mesh.core.pipeline.spec import Pipeline
from mesh.core.suspects import quarantined_s, refusal
from mesh.core.traffic.route import resolve
from mesh.core.types import ModelVersion, NodeId
from mesh.core.view import ClusterView, Located
from mesh.registry.mirror import Mirror
from mesh.wire.fields import Field
from mesh.wire.forward import written
from mesh.wire.header_cache import encode
from mesh.wire.heads import RequestHead, metadata_block
from mesh.wire.transport import MODEL_HEADER, PIPELINE_HEADER, UNORDERED_HEADER, VERSION_HEADER

MAX_TARGETS: Final = 16_384
"""Names and versions kept per view; beyond it all are forgotten and made again."""

DROPPED: Final = frozenset({b"user-agent", b"te", b"mm-model-id", b"mm-vmodel-id", b"triton_grpc_error"})
"""Said between the caller and this router only, like every ``mesh-`` key."""
_UNORDERED: Final = UNORDERED_HEADER.encode()
TRACE: Final = frozenset({b"traceparent", b"tracestate"})


class Target:
    """A version that requests resolve to, with the copies that serve it now."""

    __slots__ = ("block", "candidates", "model", "pipeline")

    def __init__(self, model: ModelVersion, candidates: tuple[Located, ...], pipeline: Pipeline | None = None) -> None:
        self.model = model
        self.candidates = candidates
        self.pipeline = pipeline
        """What `model` stands for, when it is a pipeline; `candidates` then hold all of its models."""
        said = encode(PIPELINE_HEADER.encode(), model.version.encode()) if pipeline is not None else b""
        self.block = (
            said
            + encode(MODEL_HEADER.encode(), model.name.encode())
            + encode(VERSION_HEADER.encode(), model.version.encode())
        )
        """HPACK bytes that say to the node what was resolved."""

    def is_same(self, other: Target) -> bool:
        """Tell whether nothing changed from one view to the next: unchanged parts are the same objects there."""
        return self.model is other.model and self.candidates is other.candidates and self.pipeline is other.pipeline


class Targets:
    """The targets of the current view."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._view: ClusterView | None = None
        self._found: dict[tuple[str, str], Target] = {}
        self._before: dict[tuple[str, str], Target] = {}
        """Those of the view before."""

    def find(self, name: str, version: str) -> Target:
        """Return what answers `name`: the same object as long as nothing of it changes.

        Raises as `resolve` does, and `Quarantined`. O(1) after the first time in a view.
        """
        view = self._mirror.view
        if view is not self._view:
            self._view, self._before, self._found = view, self._found, {}
        target = self._found.get((name, version))
        if target is None:
            target = _target(view, name, version)
            before = self._before.get((name, version))
            if before is not None and before.is_same(target):
                target = before
            if len(self._found) >= MAX_TARGETS:
                self._found.clear()
            self._found[name, version] = target
        return target


def _target(view: ClusterView, name: str, version: str) -> Target:
    try:
        model = resolve(view, name, version)
    except NamesPipeline:
        model = pipeline_model(view, name, version)
        return Target(model, together(view, view.pipelines[name]), view.pipelines[name])
    # Nobody keeps a target while its version is quarantined: when that ends, no view tells of it.
    refused = refusal(view.suspect(model), model, steady_s())
    if refused is not None:
        raise refused
    return Target(model, view.serving.get((model.name, model.version), ()))


def together(view: ClusterView, pipeline: Pipeline) -> tuple[Located, ...]:
    """Return a copy on each node that holds all models of a pipeline: there it runs in one hop. O(models x copies).

    None for a pipeline with another one in it, and for one that needs a model which gives several responses.
    """
    found: dict[NodeId, Located] | None = None
    for name, version in pipeline.models():
        try:
            model = resolve(view, name, version)
        except MeshError:
            return ()
        if quarantined(view, model):
            return ()
        serving = {each.node.id: each for each in view.serving.get((model.name, model.version), ())}
        found = serving if found is None else {id_: each for id_, each in found.items() if id_ in serving}
        if not found or model.decoupled:
            return ()
    return tuple(found.values()) if found else ()


def quarantined(view: ClusterView, model: ModelVersion) -> bool:
    """Tell whether callers of a version are refused now, because it ended processes."""
    suspect = view.suspect(model)
    return suspect is not None and quarantined_s(suspect, model.digest, steady_s()) > 0


class Passed:
    """What of a caller's headers goes on to the node. Kept on the head, so that equal headers cost nothing."""

    __slots__ = (
        "block",
        "forwarded",
        "name",
        "pattern",
        "refused",
        "strict",
        "trace",
        "traceparent",
        "unforwarded",
        "unordered",
    )

    def __init__(self, head: RequestHead, pattern: Pattern | None) -> None:
        kept: list[Field] = []
        trace: list[bytes] = []
        self.name = ""
        """A name in ModelMesh's metadata, which wins over the one in the message."""
        self.traceparent = b""
        self.strict = False
        self.unordered = False
        self.pattern = pattern
        self.forwarded = NOTHING
        """Headers that models read as parameters."""
        self.refused = ""
        """Why no request with these headers is taken; empty: it is."""
        if pattern is not None:
            self._forward(head, pattern)
        for field in head.own:
            name = field.name
            if name in DROPPED:
                self._said(field)
            elif name in TRACE:
                trace.append(field.raw)
                if name == b"traceparent":
                    self.traceparent = field.value
            elif not name.startswith(b"mesh-"):
                kept.append(field)
            elif name == _UNORDERED:
                self.unordered = field.value == b"true"
        self.trace = b"".join(trace)
        self.unforwarded = self.block = b"".join([field.raw for field in kept])
        """`block` as it is where nothing is forwarded: of sessions, whose steps carry that in themselves."""
        if self.forwarded:
            # Once is enough: a list of headers has a bound.
            rest = [field.raw for field in kept if field.name.decode() not in self.forwarded]
            self.block = b"".join([*rest, metadata_block(written(self.forwarded))])

    def named(self, name: str) -> str:
        """Return which model a request for `name` is for. Raises `InvalidRequest` for headers that it may not have."""
        if self.refused:
            raise InvalidRequest(self.refused)
        return self.name or name

    def _forward(self, head: RequestHead, pattern: Pattern) -> None:
        try:
            self.forwarded = forwarded(pattern, head.metadata)
        except InvalidRequest as error:
            self.refused = error.message

    def _said(self, field: Field) -> None:
        if field.name == b"mm-vmodel-id" or (field.name == b"mm-model-id" and not self.name):
            self.name = field.value.decode("utf-8", "replace")
        elif field.name == b"triton_grpc_error":
            self.strict = field.value == b"true"


def passed(head: RequestHead, pattern: Pattern | None = None) -> Passed:
    """Return what of `head` goes on; `pattern` says what models read of it. O(fields) once per distinct head."""
    found = head.memo
    if not isinstance(found, Passed) or found.pattern is not pattern:
        found = head.memo = Passed(head, pattern)
    return found
