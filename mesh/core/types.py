"""The words of the mesh as types: ids, tensor types, devices, copies, nodes, model versions and placements.

These records are what the registry stores (as JSON) and what every decision reads. They hold no behaviour beyond
naming themselves. Tensor contents live in `mesh.api.tensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

ModelName = NewType("ModelName", str)
Version = NewType("Version", str)
NodeId = NewType("NodeId", str)


class Dtype(StrEnum):
    """Tensor element types of the KServe v2 protocol, by their names on the wire."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BF16 = "BF16"
    BYTES = "BYTES"


ITEM_BYTES: Mapping[Dtype, int] = {
    Dtype.BOOL: 1,
    Dtype.UINT8: 1,
    Dtype.UINT16: 2,
    Dtype.UINT32: 4,
    Dtype.UINT64: 8,
    Dtype.INT8: 1,
    Dtype.INT16: 2,
    Dtype.INT32: 4,
    Dtype.INT64: 8,
    Dtype.FP16: 2,
    Dtype.FP32: 4,
    Dtype.FP64: 8,
    Dtype.BF16: 2,
}
"""Bytes of one element; BYTES has no fixed size and is absent."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model: its name, element type and shape.

    `shape` counts elements per axis, -1 for any number. When the model batches (`max_batch_size` > 0) the first axis is
    the batch and is -1, as ModelMetadata shows it.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    optional: bool = False


class DeviceKind(StrEnum):
    """What a device is."""

    CPU = "cpu"
    GPU = "gpu"


@dataclass(frozen=True, slots=True)
class Device:
    """A place with memory that copies sit on. 0 <= free_bytes <= total_bytes."""

    kind: DeviceKind
    index: int
    name: str
    total_bytes: int
    free_bytes: int
    """Neither held by a copy nor reserved for a load."""
    curve: tuple[tuple[int, float], ...] = ()
    """(bytes, loss), both growing: evicting the idle copies that are worth least until `bytes` more are free gives up
    `loss`, in seconds of callers' waiting per second by the node's own estimate (`mesh.core.placement.evict`). At most
    a few points; the last is all that may go."""

    @property
    def label(self) -> str:
        """Return such as "cpu:0", which is `Copy.device`."""
        return f"{self.kind.value}:{self.index}"


class CopyState(StrEnum):
    """Where a copy stands, said by its node and never guessed from time."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Copy:
    """One model version on one node."""

    model: ModelName
    version: Version
    state: CopyState
    bytes: int = 0
    """Measured bytes after the load; 0 before."""
    last_used_s: float = 0.0
    """Seconds since 1970-01-01 UTC of the last inference, to the minute in the registry; 0 when never used."""
    error: str = ""
    """Why the load failed; empty unless the state is failed."""
    device: str = "cpu:0"
    changed_s: float = 0.0
    """When it entered this state, seconds since 1970-01-01 UTC by its node's clock: for people, and to order the copies
    of one node."""
    requested_s: float = 0.0
    """`Placement.requested_s` as the node saw it when it began this load: a failure answers that request and no
    other."""
    digest: str = ""
    """The digest of the files that were loaded: differs from the model record's when the files changed since."""
    failures: int = 0
    """Loads of these files that failed here one after another."""
    pause_s: float = 0.0
    """For how long after a failure the node is not asked again; 0: it may be. The node measures it and says when it is
    over, so that all routers agree about it whatever their clocks say."""


@dataclass(frozen=True, slots=True)
class Node:
    """What a node says of itself. It exists in the registry as long as the node keeps its lease, as do its copies."""

    id: NodeId
    address: str
    """host:port of its gRPC server."""
    incarnation: str
    """A random id of this process, so that a restarted node is told from the one before it."""
    started_s: float = 0.0
    """Seconds since 1970-01-01 UTC."""
    labels: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    draining: bool = False
    """It takes no new work."""
    leaving: bool = False
    """It still serves, and its models are being moved before it drains; nothing new is placed on it."""
    repositories: tuple[str, ...] = ()
    """The model repositories it can read, as absolute ``file://`` URLs."""
    loading: int = 0
    """Loads that go on or wait for their turn."""
    load_wait_s: float = 0.0
    """Seconds, as the node expects, until a load asked for now would begin."""
    busy: float = 0.0
    """Share of its compute in use, 0 to 1."""
    failing: str = ""
    """Why it should get no more models, when it fails to load what others can load; empty: it works."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Folders of its repositories that cannot be served, as "model", "model/version" or the path of a repository ->
    why. A few dozen at most; they are here, and not asked for, so that every router can say it to whoever asks for such
    a model, also one that it never heard of."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """The parts of a version's configuration that a load request may override. Meanings as in `ModelVersion`."""

    max_batch_size: int = 0
    max_queue_delay_us: int = 0
    max_queue_size: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)
    preserve_ordering: bool = False


class ScaleToZero(StrEnum):
    """When the last copy of a model goes."""

    PRESSURE = "pressure"
    """When its memory is needed for another."""
    IDLE = "idle"
    """When nobody has asked for it during `Scaling.idle_s`."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many copies a model has. Names and meanings are those of Knative's autoscaler, a copy being its pod."""

    min_copies: int = 0
    """Never fewer, wanted or not, as far as there are nodes that can hold them."""
    max_copies: int = 0
    """Never more; 0: as many as there are nodes."""
    target: float = 4.0
    """Requests in flight per copy that are right for it."""
    target_utilization: float = 0.7
    """Share of `target` at which another copy is added, so that it is there before it is needed."""
    window_s: float = 60.0
    """Over how long concurrency is averaged."""
    panic_window_s: float = 6.0
    """Over how long it is averaged to notice a burst."""
    panic_threshold: float = 2.0
    """How many times what the copies are meant to carry makes a burst: then copies are only added."""
    scale_to_zero: ScaleToZero = ScaleToZero.PRESSURE
    idle_s: float = 600.0
    """With `ScaleToZero.IDLE`: after how long without a request the last copy goes."""


class ControlKind(StrEnum):
    """What a control input tells a model of a sequence's step (Triton's words)."""

    START = "start"
    """Whether this step is the first."""
    END = "end"
    """Whether it is the last."""
    READY = "ready"
    """Whether there is a step in this row: always, as rows without one are not run."""
    CORRID = "corrid"
    """The sequence's id."""


@dataclass(frozen=True, slots=True)
class Control:
    """An input that the node fills in, [-1, 1] for a model that batches, else [1]."""

    name: str
    kind: ControlKind
    dtype: Dtype
    off: float = 0
    on: float = 1
    """The values for false and true; CORRID has none."""


@dataclass(frozen=True, slots=True)
class State:
    """An output that is given back as an input at the next step of the same sequence (Triton's implicit state)."""

    input: str
    output: str
    dtype: Dtype = Dtype.FP32
    shape: tuple[int, ...] = ()
    """Of one sequence, without the batch axis; empty: as the model's file says."""
    initial: float = 0
    """What every element is at the start."""
    initial_file: str = ""
    """A file in the version's folder with the elements at the start, row-major and little-endian."""


@dataclass(frozen=True, slots=True)
class Sequencing:
    """How requests of one `sequence_id` follow each other, and what of their state is kept where."""

    max_live: int = 10_000
    """Sequences that are live on a copy at once; more wait for one that ends."""
    idle_s: float = 60.0
    """How long one may be without a request before it is forgotten."""
    minimum_slot_utilization: float = 0.0
    """Share of `max_batch_size` from which on a batch of steps does not wait `max_queue_delay_us` for more; 0: all."""
    controls: tuple[Control, ...] = ()
    states: tuple[State, ...] = ()
    snapshot_messages: int = 0
    """The state goes with every so-manieth answer; with `snapshot_bytes` 0 as well, when `is_due` finds it right."""
    snapshot_bytes: int = 0
    """The state goes with the answer after requests of so many bytes."""
    replayable: bool = True
    """Whether a step may be run again on another copy: not when it has an effect on the world. Then a node that is
    lost ends the sequences that have a step on their way, or steps since their state was told."""


@dataclass(frozen=True, slots=True)
class Generation:
    """How a model that steps character by character makes text, for a decoupled ONNX model."""

    states: tuple[State, ...] = ()
    """What it keeps between two steps."""
    token: str = "token"  # noqa: S105 - a tensor's name
    """The input with the character: its place in the vocabulary, INT64 or INT32 [-1, 1]."""
    logits: str = "logits"
    """The output with a number for each character that may follow, FP32 [-1, n]: the higher, the likelier."""
    prompt: str = "PROMPT"
    """What callers give, BYTES [-1, 1]."""
    text: str = "TEXT"
    """What they get in each response, BYTES [-1, 1]."""
    vocabulary: str = "vocabulary.txt"
    """A file in the version's folder: every character, in the order of their tokens."""
    max_tokens: int = 256
    """Characters that are made unless the request says (`max_tokens`)."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """Where a version runs: in processes of its own, and what these may take."""

    mode: str = ""
    """"process": in worker processes; "none": in the node's own, with all others that do; "": as is usual for its
    runtime (Python models in workers)."""
    instances: int = 1
    """Worker processes of one copy, each with the model loaded."""
    streams: int = 0
    """Requests of one instance of a decoupled Python model that go on at once; 0: as the node finds right."""
    python: str = ""
    """The Python interpreter of its workers; empty: the node's own."""
    memory_limit_bytes: int = 0
    """What a copy may hold at most; 0: what the node's device has."""
    max_load_s: float = 600.0
    """A load that takes longer is ended."""
    max_run_s: float = 0.0
    """A run that takes longer is ended with its worker; 0: none does."""


PLAIN_ISOLATION = Isolation()


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """What one immutable version of a model is.

    `inputs` and `outputs` may be empty until the first load when model.yaml does not declare them (an ONNX file knows
    its own): the loading node then fills them in.
    """

    name: ModelName
    version: Version
    runtime: str
    """"onnx" or "python"."""
    source: str
    """``file://`` URL of the version's folder."""
    digest: str
    """Hex SHA-256 over the version's files and the model's configuration."""
    size_bytes: int
    """Size of the version's files."""
    platform: str = ""
    """The name clients see in ModelMetadata, such as "onnxruntime_onnx"."""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    max_batch_size: int = 0
    """0: the first axis is not a batch."""
    max_queue_delay_us: int = 0
    max_queue_size: int = 0
    """Requests that may wait per copy; 0: the node's default."""
    scaling: Scaling = field(default_factory=Scaling)
    """How many copies it has."""
    decoupled: bool = False
    """One request may have any number of responses: streams only."""
    node_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels a node must carry to hold this version."""
    device: str = "auto"
    """"cpu", "gpu" or "auto" (a gpu if the node has one that fits and the runtime can use it)."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Passed to the runtime and shown in ModelConfig."""
    files_digest: str = ""
    """The digest without overrides: what the repository holds. Empty in records of earlier versions: `digest`."""
    loaded_bytes: int = 0
    """Bytes that a copy was measured to take in memory; 0: no node has loaded it yet."""
    load_s: float = 0.0
    """Seconds that its load took; 0: no node has loaded it yet."""
    sequence: Sequencing | None = None
    """Its requests are steps of sequences, with state; None: each stands for itself."""
    generation: Generation | None = None
    """It makes text step by step; None: it does not."""
    isolation: Isolation | None = None
    """Where it runs, if model.yaml says anything about it."""
    rerun_failed_batches: bool = True
    """Requests of which a joined run failed are run again, each alone; False for a model whose runs change the
    world."""
    preserve_ordering: bool = False
    """A copy answers in the order in which requests came to it, whatever run ends first; of a decoupled model each
    request's responses follow those of the one before it."""
    original: Tuning | None = None
    """What the files say, while a load request overrides it; None when nothing is overridden."""

    @property
    def process(self) -> Isolation:
        """Return where it runs."""
        return self.isolation or PLAIN_ISOLATION


@dataclass(frozen=True, slots=True)
class Placement:
    """Which nodes should hold a version. Written with compare-and-swap on the key's mod revision."""

    model: ModelName
    version: Version
    nodes: tuple[NodeId, ...] = ()
    off: bool = False
    """An operator unloaded it: requests do not load it again until a RepositoryModelLoad."""
    requested_s: float = 0.0
    """Names the latest request to load: a node tries again what failed for another one. Each is later than the one
    before it, which is all that is read from it: as a time, it is by the clock of whoever asked
    (`mesh.core.reconcile.next_request_s`)."""
    heat: float = 0.0
    """Its requests' decayed count as of `last_s`, left here by the last node that evicted it
    (`mesh.core.placement.forecast.History`): a model that comes back is not a stranger."""
    last_s: float = 0.0
    """Seconds since 1970-01-01 UTC of its last request as of then, by that node's clock: an estimate starts with it,
    and nothing else depends on it."""
