"""A session: the ordered steps of one sequence, and a generation; both go on when routers and nodes go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from mesh.api.messages import ModelInferRequest, ModelStreamInferResponse
from mesh.core.errors import Code
from mesh_client._common import RESUMABLE, RESUMES, WANTS_STATE, Patience, sequence_id
from mesh_client._errors import Cancelled, MeshClientError, SessionEnded, StreamError, Unavailable
from mesh_client._transport_async import AsyncDuplex, pause
from mesh_client._values import InferResult, Inputs, Parameter, request_of, result_of

from .routers import AsyncRouters

KEPT_BYTES = 16 * 1024 * 1024
"""Of requests since the last state, as much as a session keeps to go on elsewhere."""


class AsyncSession:
    """One sequence of a model that keeps state. `step` sends the next request and returns its result.

    The first step starts the sequence. A step fails with `StreamError` when the model or the mesh refuses it; the state
    is then as it was, and the next step may be tried. When the router goes away the session goes on at the next of the
    client's addresses, or the same one again, for up to `resume_s` seconds, from the state behind its last result: no
    step is lost or counted twice. Not safe for two steps at a time. Use it as a context: leaving it ends the sequence.
    """

    def __init__(
        self,
        routers: AsyncRouters,
        model: str,
        *,
        version: str,
        id: int | str | None,  # noqa: A002 - the protocol's word
        resume_s: float,
        metadata: tuple[tuple[str, str | bytes], ...] | None,
    ) -> None:
        self.model = model
        self.id = id if id is not None else sequence_id()
        self.steps = 0
        """Steps that were answered."""
        self.resumed = 0
        """How often it went on at another router."""
        self._routers = routers
        self._version = version
        self._resume_s = resume_s
        self._metadata = metadata
        self._duplex: AsyncDuplex | None = None
        self._state = b""
        self._since: list[ModelInferRequest] = []
        """Answered steps behind the state."""
        self._since_bytes = 0
        self._whole = True
        self._live = False

    async def step(
        self,
        inputs: Inputs,
        *,
        outputs: Sequence[str] | None = None,
        end: bool = False,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> InferResult:
        """Send the next step and return its result; with `end` it is the last, and the next one starts anew.

        Raises `InvalidInput` before anything is sent, `StreamError` for a step that failed, `SessionEnded` when the
        state cannot be brought back, and `Unavailable` when no router answers within `resume_s`. Cancelling it leaves
        the step undone or done; the next step goes on from the last result.
        """
        told: dict[str, Parameter] = {
            "sequence_id": self.id,
            "sequence_start": not self._live,
            "sequence_end": end,
            WANTS_STATE: True,
        }
        request = request_of(
            self.model, inputs, version=self._version, outputs=outputs, parameters={**(parameters or {}), **told}
        )
        message = await self._answer(request)
        response = message.infer_response
        self.steps += 1
        self._live = not end
        self._told(request, bytes(response.session_state), end=end)
        return result_of(response)

    async def _answer(self, request: ModelInferRequest) -> ModelStreamInferResponse:
        patience = Patience(self._resume_s)
        behind = bool(self.steps) and self._duplex is None
        """Whether the mesh is not where this session is."""
        while True:
            try:
                if self._duplex is None:
                    self._duplex = self._routers.stream(self._metadata)
                if behind:
                    await self._go_on(self._duplex, request)
                behind = False
                return await self._one(self._duplex, request)
            except StreamError as error:
                behind = behind or error.resumable
                self.resumed += error.resumable
                if not (error.resumable or error.code is Code.UNAVAILABLE):
                    raise
                if not patience.more():
                    if error.resumable:
                        raise self._ended(error) from error
                    raise
                # No copy is there yet, or too much waits, and the state is as it was; or it is lost, but not here.
                await pause(patience.wait_s())
            except (Unavailable, Cancelled) as error:
                self._leave()
                if isinstance(error, Cancelled) and self._routers.closed:
                    raise
                if not patience.more():
                    raise
                behind = True
                self.resumed += 1
                self._routers.turn()
                await pause(patience.wait_s())
            except BaseException:
                # What is on its way would be taken for the answer to the next step.
                self._leave()
                raise

    async def _go_on(self, duplex: AsyncDuplex, request: ModelInferRequest) -> None:
        """Bring the sequence to where it was behind its last result; `request` is the step that follows."""
        if not self._whole:
            self._begin_anew()
            raise SessionEnded(
                f"the session of model '{self.model}' lost its router, and its steps since the last state are more "
                f"than {KEPT_BYTES} bytes: the next step begins it anew"
            )
        steps = [*self._since, request]
        for each in steps:
            each.parameters[RESUMES].bool_param = False
            each.ClearField("session_state")
        if self._state:
            steps[0].parameters[RESUMES].bool_param = True
            steps[0].session_state = self._state
        for each in self._since:
            await self._one(duplex, each)

    async def _one(self, duplex: AsyncDuplex, request: ModelInferRequest) -> ModelStreamInferResponse:
        await duplex.send(request)
        try:
            return _whole(await duplex.receive())
        except StreamError as error:
            if error.code is not Code.ABORTED or (error.resumable and self._whole):
                raise
            raise self._ended(error) from error

    def _ended(self, error: StreamError) -> SessionEnded:
        self._begin_anew()
        return SessionEnded(error.message, code=error.code)

    def _told(self, request: ModelInferRequest, state: bytes, *, end: bool) -> None:
        """Keep what it takes to go on elsewhere."""
        if state or end:
            self._begin_anew()
            self._state, self._live = b"" if end else state, not end
            return
        self._since.append(request)
        self._since_bytes += request.ByteSize()
        if self._since_bytes > KEPT_BYTES:
            self._whole = False
            self._since.clear()

    def _begin_anew(self) -> None:
        """Keep nothing: the next step starts the sequence."""
        self._state, self._whole, self._live = b"", True, False
        self._since.clear()
        self._since_bytes = 0

    def _leave(self) -> None:
        if self._duplex is not None:
            self._duplex.cancel()
            self._duplex = None

    async def close(self) -> None:
        """End the sequence at the mesh without another step. A mesh that cannot be reached forgets it by itself."""
        if self._live and self._duplex is not None:
            request = request_of(
                self.model, {}, version=self._version, parameters={"sequence_id": self.id, "mesh_forget": True}
            )
            with suppress(MeshClientError):
                await self._one(self._duplex, request)
        self._live = False
        self._leave()

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the sequence."""
        await self.close()

    def __repr__(self) -> str:
        """Show how far it is."""
        return f"<AsyncSession {self.model} id={self.id} steps={self.steps} resumed={self.resumed}>"


def _whole(message: ModelStreamInferResponse | None) -> ModelStreamInferResponse:
    """Return an answer. Raises `StreamError` for an error, `Unavailable` at the end of the stream."""
    if message is None:
        raise Unavailable("the stream ended before the answer was there", code=Code.UNAVAILABLE)
    if message.error_message:
        resumable = RESUMABLE in message.infer_response.parameters
        raise StreamError(message.error_message, message.infer_response.id, resumable=resumable)
    return message


async def generate(
    routers: AsyncRouters, request: ModelInferRequest, *, resume_s: float, metadata: Any
) -> AsyncIterator[InferResult]:
    """Yield the responses of one request of a several-response model; see `AsyncClient.generate`."""
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.parameters[WANTS_STATE].bool_param = True
    patience, taken, duplex = Patience(resume_s), 0, None
    skip = behind = 0
    try:
        while True:
            try:
                if duplex is None:
                    duplex = routers.stream(metadata)
                    await duplex.send(request)
                    await duplex.half_close()
                message = _whole(await duplex.receive())
                result = result_of(message.infer_response)
                if result.final and not result.outputs:
                    return
                patience.again()
                state = bytes(message.infer_response.session_state)
                fresh, skip = not skip, max(0, skip - 1)
                behind += 1 if fresh else 0
                if state:
                    request.session_state, behind = state, skip
                    request.parameters[RESUMES].bool_param = True
                if fresh:
                    taken += 1
                    yield result
                if result.final:
                    return  # A model with one response says so with it.
            except (Unavailable, Cancelled) as error:
                if duplex is not None:
                    duplex.cancel()
                duplex, skip = None, behind
                lost = taken and not request.session_state
                if lost or not patience.more() or (isinstance(error, Cancelled) and routers.closed):
                    raise
                routers.turn()
                await pause(patience.wait_s())
    finally:
        if duplex is not None:
            duplex.cancel()
