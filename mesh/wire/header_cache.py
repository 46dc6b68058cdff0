"""HPACK through the `hpack` package, with a cache in front of it that makes equal bytes cost nothing.

We ask for a header table of size 0. Once a peer has said that it follows (a size update to 0 at the start of a
block), a block no longer depends on the blocks before it: equal bytes are equal headers, and each field of a block
stands alone. So whole blocks are looked up first, then single fields, and only a field never seen is decoded. Until
then `hpack` decodes every block, with the table the peer still uses. (RFC 7541 §4.2, §6)
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from mesh.wire.frames import ConnectionFault, ErrorCode

V = TypeVar("V")

MAX_CACHED_BYTES: Final = 512
"""Longest block or field that is kept. gRPC's usual request block has 150 to 350 bytes."""

CACHED: Final = 4096
"""Entries of each half of a cache: at most 2 x 4,096 x (512 bytes and the object), about 6 MB."""

ENTRY_OVERHEAD: Final = 32
"""What a field counts beside its bytes towards the size of a header list (RFC 9113 §6.5.2)."""

TABLE_SIZE: Final = 4096
"""The table a peer may use before it has read our settings (RFC 9113 §6.5.2)."""

STATIC: Final[tuple[tuple[bytes, bytes], ...]] = tuple(HeaderTable.STATIC_TABLE)


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


class _Name:
    """A field's name as its representation writes it, and how often a value came with it that was not known."""

    __slots__ = ("fresh", "name", "role")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.role = role_of(name)
        self.fresh = 0


VARYING: Final = 512
"""Unknown values after which a name is taken for one whose values differ from call to call (a request id): they are
neither looked up nor kept any more."""

_NAMES: Final[Generations[int]] = Generations()
_BLOCKS: Final[Generations[Block]] = Generations()
_FIELDS: Final[Generations[Field]] = Generations()
_RAWS: Final[Generations[bytes]] = Generations()
_WRITTEN_NAMES: Final[Generations[_Name]] = Generations()


class HeaderReader:
    """Decodes the header blocks of one connection. Every block must pass through it, in order."""

    __slots__ = ("_decoder", "_max_list_bytes", "_stem", "stands_alone")

    def __init__(self, max_list_bytes: int) -> None:
        self._max_list_bytes = max_list_bytes
        self._decoder: Decoder | None = None
        self._stem: Stem | None = None
        self.stands_alone = False
        """Whether the peer has given up its table, so that blocks no longer depend on each other."""
        self._begin_table()

    def _begin_table(self) -> None:
        """Follow the peer's table."""
        self.stands_alone = False
        # Twice the bound: a list somewhat above it is a refused call, and only beyond that a broken connection.
        self._decoder = Decoder(2 * self._max_list_bytes)
        # What it had before it read our settings. One that forgets to say that it follows them is understood as well.
        self._decoder.max_allowed_table_size = TABLE_SIZE

    def read(self, data: bytes) -> Block:
        """Return the fields of one whole header block. Raises `ConnectionFault` with COMPRESSION_ERROR."""
        if self.stands_alone:
            found = _BLOCKS.get(data)
            if found is not None:
                return found
            if not _raises_table(data):
                return self._split(data)
            # Against our settings, and understood all the same: h2spec asks for that.
            self._begin_table()
        return self._with_table(data)

    def _with_table(self, data: bytes) -> Block:
        decoder = self._decoder
        assert decoder is not None
        try:
            pairs = decoder.decode(data, raw=True)
        except (HPACKError, IndexError, ValueError, TypeError) as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"cannot decode headers: {error}") from error
        if decoder.header_table_size == 0:
            self.stands_alone = True
            self._decoder = None
        fields = tuple([field_of(bytes(name), bytes(value)) for name, value in pairs])
        return Block(fields, sum(field.size for field in fields))

    def _split(self, data: bytes) -> Block:
        """Return the fields of a block that stands alone, each from the cache where it was seen before."""
        fields: list[Field] = []
        position, size, total, known_to = 0, len(data), 0, 0
        stem = self._stem
        if stem is not None and data.startswith(stem.data):
            fields.extend(stem.fields)
            position = stem.size
        else:
            stem = None
        try:
            while position < size:
                value_at = _value_of_field(data, position)
                if value_at < 0:
                    odd, position = self._odd(data, position, after_fields=bool(fields))
                    if odd is None:
                        continue
                    field = odd
                else:
                    end = _end_of_value(data, value_at)
                    field, fresh = _field(data, position, value_at, end)
                    if fresh and not known_to:
                        known_to = position or -1
                        if stem is None and len(fields) >= MIN_STEM:
                            self._stem = Stem(data[:position], tuple(fields))
                    position = end
                fields.append(field)
                total += field.size
                if total > 2 * self._max_list_bytes:
                    raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header list beyond twice our limit")
        except (HPACKError, IndexError, ValueError, TypeError) as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"cannot decode headers: {error}") from error
        if stem is not None:
            total += sum([field.size for field in stem.fields])
        block = Block(tuple(fields), total, stem)
        # A block with a new field in it will hardly come again: keeping it would push out those that do.
        if not known_to and size <= MAX_CACHED_BYTES:
            _BLOCKS.put(data, block)
        return block

    def _odd(self, data: bytes, position: int, *, after_fields: bool) -> tuple[Field | None, int]:
        """Return what is no literal, an indexed field or None for a size update, and where it ends."""
        first = data[position]
        if first < 0x80:
            end = _number(data, position, 0x1F)[1]
            _size_update(data[position:end], after_fields=after_fields)
            return None, end
        index, end = _number(data, position, 0x7F)
        raw = data[position:end]
        field = _FIELDS.get(raw)
        if field is None:
            name, value = _static(index)
            field = Field(name, value, raw, role_of(name))
            _FIELDS.put(raw, field)
        return field, end


MIN_STEM: Final = 3
"""Fields at the beginning of a block that make it worth remembering them as one."""


def _field(data: bytes, start: int, value_at: int, end: int) -> tuple[Field, bool]:
    """Return the literal field in `data[start:end]` and whether its value was not known."""
    written = data[start:value_at]
    name = _WRITTEN_NAMES.new.get(written)
    if name is None:
        name = _Name(_name_of(written))
        if len(written) <= MAX_CACHED_BYTES:
            _WRITTEN_NAMES.put(written, name)
    raw = data[start:end]
    if name.fresh < VARYING:
        field = _FIELDS.get(raw)
        if field is not None:
            return field, False
        name.fresh += 1
    value = _text(raw, value_at - start)[0] if data[value_at] >= 0x7F else data[value_at + 1 : end]
    field = Field(name.name, value, raw, name.role)
    if name.fresh < VARYING and len(raw) <= MAX_CACHED_BYTES:
        _FIELDS.put(raw, field)
    return field, True


def _raises_table(data: bytes) -> bool:
    """Tell whether a block begins with a table size above 0."""
    return data[:1] > b"\x20" and data[0] & 0xE0 == 0x20


def _size_update(raw: bytes, *, after_fields: bool) -> None:
    if after_fields:
        raise ValueError("a table size update after a field")
    if raw != b"\x20":
        raise ValueError("a table size above the 0 that we allow")


def _value_of_field(data: bytes, start: int) -> int:
    """Return where the value of the literal at `start` begins with its length, -1 for what is no literal."""
    first = data[start]
    if first >= 0x80 or first & 0xE0 == 0x20:
        return -1
    mask = 0x3F if first >= 0x40 else 0x0F
    index = first & mask
    if index == 0:
        length = data[start + 1] & 0x7F
        return start + 2 + length if length != 0x7F else _end_of_text(data, start + 1)
    return start + 1 if index != mask else _number(data, start, mask)[1]


def _end_of_value(data: bytes, value_at: int) -> int:
    """Return where the text whose length is at `value_at` ends. Raises ValueError when that is beyond the block."""
    length = data[value_at]
    end = value_at + 1 + length if length < 0x7F else _end_of_text(data, value_at)
    if end > len(data):
        raise ValueError("a field is cut off")
    return end


def _end_of_text(data: bytes, start: int) -> int:
    length, position = _number(data, start, 0x7F)
    return position + length


def _number(data: bytes, start: int, mask: int) -> tuple[int, int]:
    """Return an integer with a prefix of `mask`, and where it ends (RFC 7541 §5.1)."""
    value = data[start] & mask
    position = start + 1
    if value < mask:
        return value, position
    shift = 0
    while True:
        byte = data[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 28:
            raise ValueError("a number of more than 32 bits")


def _name_of(written: bytes) -> bytes:
    """Return the name in the part of a literal before its value. Raises HPACKError, IndexError or ValueError."""
    mask = 0x3F if written[0] >= 0x40 else 0x0F
    index, _ = _number(written, 0, mask)
    return _static(index)[0] if index else _text(written, 1)[0]


def _static(index: int) -> tuple[bytes, bytes]:
    if not 1 <= index <= len(STATIC):
        raise ValueError(f"field {index} of a table that has {len(STATIC)}")
    return STATIC[index - 1]


def _text(raw: bytes, start: int) -> tuple[bytes, int]:
    length, position = _number(raw, start, 0x7F)
    end = position + length
    text = raw[position:end]
    if raw[start] & 0x80:
        text = decode_huffman(text)
    return text, end


def field_of(name: bytes, value: bytes) -> Field:
    """Return a field that was not read from a block that stands alone."""
    return Field(name, value, encode(name, value), role_of(name))


def encode(name: bytes, value: bytes) -> bytes:
    """Return the HPACK bytes of one field, which no table of the peer's changes. Cached."""
    key = name + b"\0" + value
    found = _RAWS.get(key)
    if found is None:
        # Never-indexed literals (or static fields): they leave every table as it is (RFC 7541 §6.2.3).
        found = bytes(Encoder().encode([(name, value, (name, value) not in _STATIC_FIELDS)], huffman=False))
        if len(key) <= MAX_CACHED_BYTES:
            _RAWS.put(key, found)
    return found


_STATIC_FIELDS: Final = frozenset(STATIC)


def encode_all(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Return the HPACK bytes of `pairs`."""
    return b"".join([encode(name, value) for name, value in pairs])
