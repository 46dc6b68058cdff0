"""What a block of headers means to gRPC: the head of a request, and of an answer or its trailers.

Made once per distinct block (`Block.meaning`), so a call with headers seen before costs one lookup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mesh.core.errors import Code, InvalidRequest, MeshError
from mesh.wire.fields import Block, Field, Role
from mesh.wire.grpc_framing import (
    ACCEPTED,
    binary_text,
    binary_values,
    check_encoding,
    code_of_http,
    percent_decoded,
    percent_encoded,
    timeout_s,
    timeout_text,
)
from mesh.wire.header_cache import encode
from mesh.wire.transport import Metadata

MAX_DIGITS: Final = 18
"""Of a content-length: 2^59 bytes. `int` raises for thousands, and takes time that grows with their square."""


class RequestHead:
    """The head of one call. `malformed` says why it breaks HTTP/2, `refused` why gRPC does not take it."""

    __slots__ = (
        "_metadata",
        "authority",
        "compression",
        "content_length",
        "http_error",
        "malformed",
        "memo",
        "own",
        "path",
        "refused",
        "timeout_s",
    )

    def __init__(self) -> None:
        self.path = b""
        self.authority = b""
        self.timeout_s: float | None = None
        self.compression = 0
        self.content_length = -1
        self.own: list[Field] = []
        """The caller's own metadata."""
        self.malformed = ""
        self.http_error = b""
        """The HTTP status for a request that is not gRPC's."""
        self.refused: MeshError | None = None
        self._metadata: Metadata | None = None
        self.memo: object = None
        """Where the server keeps what it made of this head, so that it is made once."""

    @property
    def metadata(self) -> Metadata:
        """The caller's metadata as pairs; -bin values as bytes. Raises `InvalidRequest` for bad base64."""
        if self._metadata is None:
            self._metadata = pairs(self.own)
        return self._metadata

    def get(self, name: bytes) -> bytes | None:
        """Return the first value of the caller's metadata `name`."""
        for field in self.own:
            if field.name == name:
                return field.value
        return None


def request_head(block: Block) -> RequestHead:
    """Return what `block` asks for. Cached on the block. O(fields)."""
    head = block.meaning
    if head.__class__ is not RequestHead:
        head = block.meaning = _request_head(block)
    return head


def _request_head(block: Block) -> RequestHead:
    stem = block.stem
    if stem is None:
        return _completed(_Draft(block.fields))
    draft = stem.meaning
    if draft.__class__ is not _Draft:
        draft = stem.meaning = _Draft(stem.fields)
    assert isinstance(draft, _Draft)
    more = block.fields[len(stem.fields) :]
    return _extended(draft, more) or _completed(draft.and_more(more))


def _extended(draft: _Draft, fields: Sequence[Field]) -> RequestHead | None:
    """Return the head that a stem and a few fields of the usual kinds make; None where another has to look."""
    if draft.whole is None:
        draft.whole = _completed(draft.and_more(()))
    base = draft.whole
    if base.malformed or not draft.regular:
        return None
    head = RequestHead.__new__(RequestHead)
    head.path, head.authority, head.http_error = base.path, base.authority, base.http_error
    head.compression, head.content_length = base.compression, base.content_length
    head.malformed, head.refused, head.timeout_s = "", base.refused, base.timeout_s
    head._metadata = head.memo = None  # noqa: SLF001 - this is its own module
    head.own = own = base.own.copy()
    for field in fields:
        if field.role == Role.METADATA:
            own.append(field)
        elif field.role == Role.TIMEOUT:
            try:
                head.timeout_s = timeout_s(field.value)
            except InvalidRequest:
                return None
        else:
            return None
    return head


class _Draft:
    """What the fields so far say of a request."""

    __slots__ = ("content_type", "head", "pseudo", "regular", "whole")

    def __init__(self, fields: Sequence[Field]) -> None:
        self.head = RequestHead()
        self.pseudo: dict[int, bytes] = {}
        self.content_type = b""
        self.regular = False
        """Whether a regular field came: no pseudo-header may follow it."""
        self.whole: RequestHead | None = None
        """The head that these fields make alone; kept on a stem's."""
        self.read(fields)

    def and_more(self, fields: Sequence[Field]) -> _Draft:
        """Return another that has read `fields` too."""
        draft = _Draft(())
        draft.pseudo = self.pseudo
        draft.content_type = self.content_type
        draft.regular = True
        head, mine = draft.head, self.head
        head.timeout_s = mine.timeout_s
        head.compression = mine.compression
        head.content_length = mine.content_length
        head.own = mine.own.copy()
        head.malformed = mine.malformed
        head.refused = mine.refused
        if not self.regular:
            draft.pseudo, draft.regular = self.pseudo.copy(), False
        draft.read(fields)
        return draft

    def read(self, fields: Sequence[Field]) -> None:
        """Take more fields."""
        head, own = self.head, self.head.own
        for field in fields:
            role = field.role
            if role == Role.METADATA:
                own.append(field)
                self.regular = True
            elif Role.METHOD <= role <= Role.LAST_PSEUDO:
                if self.regular or role in self.pseudo or role == Role.STATUS:
                    head.malformed = f"pseudo-header {field.name!r} where it may not be"
                else:
                    self.pseudo[role] = field.value
            else:
                self.regular = True
                if role == Role.CONTENT_TYPE:
                    self.content_type = field.value
                elif role == Role.BAD:
                    head.malformed = f"header {field.name!r} is not allowed"
                elif role <= Role.ENCODING or role == Role.CONTENT_LENGTH:
                    _reserved(head, role, field.value)


def _completed(draft: _Draft) -> RequestHead:
    """Return the head that all fields make."""
    head, pseudo = draft.head, draft.pseudo
    method, head.path = pseudo.get(Role.METHOD, b""), pseudo.get(Role.PATH, b"")
    head.authority = pseudo.get(Role.AUTHORITY, b"")
    if not method or not head.path or not pseudo.get(Role.SCHEME):
        head.malformed = head.malformed or "a request needs :method, :scheme and :path"
    elif method != b"POST":
        head.http_error = b"405"
    elif draft.content_type != b"application/grpc" and not _is_grpc(draft.content_type):
        head.http_error = b"415"
    return head


def _reserved(head: RequestHead, role: int, value: bytes) -> None:
    try:
        if role == Role.TIMEOUT:
            head.timeout_s = timeout_s(value)
        elif role == Role.ENCODING:
            head.compression = check_encoding(value)
        elif role == Role.CONTENT_LENGTH:
            if not value.isdigit() or len(value) > MAX_DIGITS:
                raise InvalidRequest("content-length is no number")
            if head.content_length not in {-1, int(value)}:
                raise InvalidRequest("two content-lengths that differ")
            head.content_length = int(value)
    except MeshError as error:
        if role == Role.CONTENT_LENGTH:
            head.malformed = error.message
        else:
            head.refused = error


def _is_grpc(content_type: bytes) -> bool:
    return content_type == b"application/grpc" or content_type.startswith((b"application/grpc+", b"application/grpc;"))


class AnswerHead:
    """The headers or trailers of an answer."""

    __slots__ = ("_metadata", "compression", "http_status", "message", "own", "status")

    def __init__(self, block: Block) -> None:
        self.own: list[Field] = []
        self.status: int | None = None
        """grpc-status; None in headers, which say nothing of the end."""
        self.message = ""
        self.http_status = b""
        self.compression = 0
        self._metadata: Metadata | None = None
        is_grpc = True
        for field in block.fields:
            role = field.role
            if role == Role.METADATA:
                self.own.append(field)
            elif role == Role.GRPC_STATUS:
                self.status = int(field.value) if field.value.isdigit() and len(field.value) < 4 else 2
            elif role == Role.GRPC_MESSAGE:
                self.message = percent_decoded(field.value)
            elif role == Role.STATUS:
                self.http_status = field.value
            elif role == Role.CONTENT_TYPE:
                is_grpc = _is_grpc(field.value)
            elif role == Role.ENCODING:
                self.compression = {b"gzip": 31, b"deflate": 15}.get(field.value, 0)
        if self.status is None and self.http_status and (self.http_status != b"200" or not is_grpc):
            self.status = code_of_http(self.http_status)
            self.message = f"the peer answered with HTTP status {self.http_status.decode('latin-1')}, not with gRPC"
        if self.status is not None and self.status > Code.UNAUTHENTICATED:
            self.status = Code.UNKNOWN

    @property
    def metadata(self) -> Metadata:
        """The peer's metadata as pairs."""
        if self._metadata is None:
            try:
                self._metadata = pairs(self.own)
            except InvalidRequest:
                self._metadata = ()
        return self._metadata


def answer_head(block: Block) -> AnswerHead:
    """Return what `block` answers. Cached on the block. O(fields)."""
    head = block.meaning
    if head.__class__ is not AnswerHead:
        head = block.meaning = AnswerHead(block)
    return head


def pairs(fields: list[Field]) -> Metadata:
    """Return fields as metadata. Raises `InvalidRequest` for a -bin value that is no base64."""
    found: list[tuple[str, str | bytes]] = []
    for field in fields:
        name = field.name.decode("ascii")
        if name.endswith("-bin"):
            found += [(name, value) for value in binary_values(field.value)]
        else:
            found.append((name, field.value.decode("latin-1")))
    return tuple(found)


def metadata_block(metadata: Metadata) -> bytes:
    """Return the HPACK bytes of `metadata`."""
    return b"".join([encode(*_wire_pair(name, value)) for name, value in metadata])


def _wire_pair(name: str, value: str | bytes) -> tuple[bytes, bytes]:
    raw = name.encode("ascii")
    if raw.endswith(b"-bin"):
        return raw, binary_text(value if isinstance(value, bytes) else value.encode())
    return raw, value if isinstance(value, bytes) else value.encode("latin-1", "replace")


ANSWER: Final = encode(b":status", b"200") + encode(b"content-type", b"application/grpc")
"""The headers of every answer."""


def answer_block(metadata: Metadata) -> bytes:
    """Return the HPACK bytes of an answer's headers with the handler's own metadata."""
    return ANSWER + metadata_block(metadata) if metadata else ANSWER


ANSWER_NAMING_ENCODINGS: Final = ANSWER + encode(b"grpc-accept-encoding", ACCEPTED)

OK_TRAILERS: Final = encode(b"grpc-status", b"0")


def trailers(code: int, message: str = "", metadata: Metadata = ()) -> bytes:
    """Return the HPACK bytes of a status."""
    block = encode(b"grpc-status", b"%d" % code)
    if message:
        block += encode(b"grpc-message", percent_encoded(message))
    return block + metadata_block(metadata) if metadata else block


_TIMEOUT_NAME: Final = encode(b"grpc-timeout", b"")[:-1]


def timeout_field(seconds: float) -> bytes:
    """Return the HPACK bytes of a grpc-timeout, which differs from call to call: its name, its length, its text."""
    text = timeout_text(seconds)
    return _TIMEOUT_NAME + bytes((len(text),)) + text


def request_block(path: str, authority: str, scheme: str) -> bytes:
    """Return the HPACK bytes that begin every request for `path`; timeout and metadata follow."""
    return b"".join(
        [
            encode(b":method", b"POST"),
            encode(b":scheme", scheme.encode()),
            encode(b":path", path.encode()),
            encode(b":authority", authority.encode()),
            encode(b"te", b"trailers"),
            encode(b"content-type", b"application/grpc"),
        ]
    )
