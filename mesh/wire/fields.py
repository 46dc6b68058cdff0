"""Header fields and blocks of them, as values: what each name means to gRPC, and the bytes that travel for it.

`header_cache` makes them of HPACK bytes, `heads` reads them.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

V = TypeVar("V")

MAX_CACHED_BYTES: Final = 512
"""Longest block or field that is kept. gRPC's usual request block has 150 to 350 bytes."""

CACHED: Final = 4096
"""Entries of each half of a cache: at most 2 x 4,096 x (512 bytes and the object), about 6 MB."""

ENTRY_OVERHEAD: Final = 32
"""What a field counts beside its bytes towards the size of a header list (RFC 9113 §6.5.2)."""


class Generations(Generic[V]):
    """A bounded map that forgets what was not used for a while: two halves, the older dropped when the newer fills."""

    __slots__ = ("_limit", "new", "old")

    def __init__(self, limit: int = CACHED) -> None:
        self._limit = limit
        self.new: dict[bytes, V] = {}
        self.old: dict[bytes, V] = {}

    def get(self, key: bytes) -> V | None:
        """Return what was put under `key`, None when it is gone. O(1)."""
        found = self.new.get(key)
        if found is None and (found := self.old.get(key)) is not None:
            self.put(key, found)
        return found

    def put(self, key: bytes, value: V) -> None:
        """Keep `value`. O(1)."""
        if len(self.new) >= self._limit:
            self.old, self.new = self.new, {}
        self.new[key] = value


class Field:
    """One header field: its name and value, and bytes that any decoder reads as it, whatever its table holds."""

    __slots__ = ("name", "raw", "role", "size", "value")

    def __init__(self, name: bytes, value: bytes, raw: bytes, role: int) -> None:
        self.name = name
        self.value = value
        self.raw = raw
        self.size = len(name) + len(value) + ENTRY_OVERHEAD
        if b"\n" in value or b"\r" in value or b"\0" in value or (role == Role.TE and value != b"trailers"):
            role = Role.BAD
        self.role = role

    def __repr__(self) -> str:
        """Show it as it would stand in a log."""
        return f"<Field {self.name!r}: {self.value!r}>"


class Role:
    """What a field's name means to gRPC over HTTP/2; numbers, because they are compared once per field."""

    METADATA = 0
    METHOD = 1
    SCHEME = 2
    PATH = 3
    AUTHORITY = 4
    STATUS = 5
    CONTENT_TYPE = 6
    TIMEOUT = 7
    ENCODING = 8
    ACCEPT_ENCODING = 9
    GRPC_STATUS = 10
    GRPC_MESSAGE = 11
    TE = 12
    OTHER_RESERVED = 13
    CONTENT_LENGTH = 14
    BAD = 15

    LAST_PSEUDO = STATUS


ROLES: Final = {
    b":method": Role.METHOD,
    b":scheme": Role.SCHEME,
    b":path": Role.PATH,
    b":authority": Role.AUTHORITY,
    b":status": Role.STATUS,
    b"te": Role.TE,
    b"content-type": Role.CONTENT_TYPE,
    b"content-length": Role.CONTENT_LENGTH,
    b"grpc-timeout": Role.TIMEOUT,
    b"grpc-encoding": Role.ENCODING,
    b"grpc-accept-encoding": Role.ACCEPT_ENCODING,
    b"grpc-status": Role.GRPC_STATUS,
    b"grpc-message": Role.GRPC_MESSAGE,
    # Of the connection, not of the call: forbidden in HTTP/2 (RFC 9113 §8.2.2).
    b"connection": Role.BAD,
    b"keep-alive": Role.BAD,
    b"proxy-connection": Role.BAD,
    b"transfer-encoding": Role.BAD,
    b"upgrade": Role.BAD,
}

_NAME_BYTES: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~")
"""What a lower-case token is made of (RFC 9110 §5.6.2, RFC 9113 §8.2.1)."""


_NAMES: Final[Generations[int]] = Generations()


def role_of(name: bytes) -> int:
    """Return what a field means to gRPC; `Role.BAD` for one that makes its message malformed (RFC 9113 §8.2)."""
    role = _NAMES.new.get(name)
    if role is None:
        role = _role_of_name(name)
        if len(name) <= MAX_CACHED_BYTES:
            _NAMES.put(name, role)
    return role


def _role_of_name(name: bytes) -> int:
    role = ROLES.get(name)
    if role is not None:
        return role
    if not name or not _NAME_BYTES.issuperset(name):
        return Role.BAD
    return Role.OTHER_RESERVED if name.startswith(b"grpc-") and name != _DETAILS else Role.METADATA


_DETAILS: Final = b"grpc-status-details-bin"
"""Metadata by every rule but its prefix: passed on as it comes."""


class Stem:
    """The fields with which the blocks of one connection begin, where only what follows differs from call to call."""

    __slots__ = ("data", "fields", "meaning", "size")

    def __init__(self, data: bytes, fields: tuple[Field, ...]) -> None:
        self.data = data
        self.fields = fields
        self.size = len(data)
        self.meaning: object = None
        """As a block's."""


class Block:
    """A decoded header block. `meaning` is where a reader keeps what it made of it, so that it is made once."""

    __slots__ = ("fields", "kept", "meaning", "size", "stem")

    def __init__(self, fields: tuple[Field, ...], size: int, stem: Stem | None = None) -> None:
        self.fields = fields
        self.size = size
        """Bytes as RFC 9113 §6.5.2 counts a header list."""
        self.stem = stem
        """Its first fields, where they were seen before as a whole."""
        self.meaning: object = None
        self.kept: object = None
        """A second place, for the one that passes the headers on."""

    def get(self, name: bytes) -> bytes | None:
        """Return the value of the first field `name`, None without one. O(fields)."""
        for field in self.fields:
            if field.name == name:
                return field.value
        return None

    def __repr__(self) -> str:
        """Show the fields."""
        return f"<Block {self.fields!r}>"
