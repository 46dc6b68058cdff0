"""What routers and nodes tell each other of requests whose steps run in several places, as mesh.v1 messages."""

from __future__ import annotations

import time
from collections.abc import Mapping

from google.protobuf.message import DecodeError

from mesh.api.carried import Carried
from mesh.api.messages import notes
from mesh.api.values import read_value, value_message
from mesh.core.errors import Code, InvalidRequest, RemoteError
from mesh.core.pipeline.spec import Literal
from mesh.core.types import Dtype


class RunInfo:
    """What every place of a request knows of it. `said` is kept as it came, and sent on with the time that is left."""

    __slots__ = ("deadline_s", "said")

    def __init__(self, said: notes.Run, deadline_s: float | None) -> None:
        self.said = said
        self.deadline_s = deadline_s
        """On the clock of `time.monotonic` here; None without a deadline."""

    def message(self) -> notes.Run:
        """Return it as it travels now."""
        if self.deadline_s is not None:
            self.said.timeout_s = max(1e-6, self.deadline_s - time.monotonic())
        return self.said

    def parameters(self) -> dict[str, Literal]:
        """Return the parameters of the request."""
        return {name: read_value(value) for name, value in self.said.parameters.items()}

    def __repr__(self) -> str:
        """Show whose it is."""
        return f"<RunInfo {self.said.router}/{self.said.id} plan={self.said.plan}>"


def begun(deadline_s: float | None, trace: Mapping[str, str], parameters: Mapping[str, Literal]) -> RunInfo:
    """Return a request that begins here; its router, id and plan are not known yet."""
    said = notes.Run(traceparent=trace.get("traceparent", ""), tracestate=trace.get("tracestate", ""))
    for name, value in parameters.items():
        said.parameters[name].CopyFrom(value_message(value))
    return RunInfo(said, deadline_s)


def read_run(said: notes.Run) -> RunInfo:
    """Return what a note says of its request."""
    return RunInfo(said, time.monotonic() + said.timeout_s if said.timeout_s > 0 else None)


def read_note(data: bytes) -> notes.Note:
    """Return a note. Raises `InvalidRequest` for bytes that are none."""
    try:
        return notes.Note.FromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"cannot parse mesh.v1.Note: {error}") from error


def ended_note(run: RunInfo, step: str, tensors: Mapping[str, Carried] | None) -> bytes:
    """Return the note that says how a step ended, None: it was skipped."""
    # Made in place: a message that is given to another one is copied, tensors and all.
    note = notes.Note()
    ended = note.ended
    ended.run.CopyFrom(run.message())
    ended.step = step
    if tensors is None:
        ended.skipped = True
        return note.SerializeToString()
    for name, tensor in tensors.items():
        ended.tensors.add(name=name, datatype=tensor.dtype.value, shape=tensor.shape, raw=tensor.raw)
    return note.SerializeToString()


def read_ended(said: notes.StepEnded) -> dict[str, Carried] | None:
    """Return the tensors of a step that ended, None when it was skipped. Whoever uses their data judges them.

    Raises `InvalidRequest` for an unknown type.
    """
    if said.skipped:
        return None
    found: dict[str, Carried] = {}
    for tensor in said.tensors:
        if tensor.datatype not in Dtype.__members__:
            raise InvalidRequest(f"tensor '{tensor.name}' has the unknown data-type '{tensor.datatype}'")
        found[tensor.name] = Carried(Dtype[tensor.datatype], tuple(tensor.shape), tensor.raw)
    return found


def failed_note(run: int, step: str, code: Code, message: str, *, not_run: bool, died: bool = False) -> bytes:
    """Return the note that says that a step failed, or with an empty step the part before any ran."""
    failed = notes.StepFailed(run=run, step=step, code=int(code), message=message, not_run=not_run, died=died)
    return notes.Note(failed=failed).SerializeToString()


def read_failed(said: notes.StepFailed) -> RemoteError:
    """Return the failure. An unknown code is UNKNOWN."""
    code = Code(said.code) if said.code in Code._value2member_map_ else Code.UNKNOWN
    return RemoteError(code if code is not Code.OK else Code.UNKNOWN, said.message)
