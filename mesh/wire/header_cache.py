"""HPACK through the `hpack` package, with a cache in front of it that makes equal bytes cost nothing.

We ask for a header table of size 0. Once a peer has said that it follows (a size update to 0 at the start of a
block), a block no longer depends on the blocks before it: equal bytes are equal headers, and each field of a block
stands alone. So whole blocks are looked up first, then single fields, and only a field never seen is decoded. Until
then `hpack` decodes every block, with the table the peer still uses. (RFC 7541 §4.2, §6)
"""

from __future__ import annotations

from typing import Final

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from mesh.wire.fields import ENTRY_OVERHEAD, MAX_CACHED_BYTES, Block, Field, Generations, Stem, role_of
from mesh.wire.frames import ConnectionFault, ErrorCode

TABLE_SIZE: Final = 4096
"""The table a peer may use before it has read our settings (RFC 9113 §6.5.2)."""

MAX_BLOCK: Final = 256 * 1024
"""Bytes of a header block, over all CONTINUATION frames (CVE-2024-27316 and its like): four times the longest list that
is taken. One up to here is read, as the peer's table may change with it, and refused on its stream."""

STATIC: Final[tuple[tuple[bytes, bytes], ...]] = tuple(HeaderTable.STATIC_TABLE)


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

_BLOCKS: Final[Generations[Block]] = Generations()
_FIELDS: Final[Generations[Field]] = Generations()
_RAWS: Final[Generations[bytes]] = Generations()
_WRITTEN_NAMES: Final[Generations[_Name]] = Generations()


class HeaderReader:
    """Decodes the header blocks of one connection. Every block must pass through it, in order."""

    __slots__ = ("_decoder", "_most", "_stem", "stands_alone")

    def __init__(self, max_list_bytes: int) -> None:
        self._most = 2 * max_list_bytes
        """Beyond it a list is not kept. A list somewhat above it is a refused call as well, with its fields."""
        self._decoder: Decoder | None = None
        self._stem: Stem | None = None
        self.stands_alone = False
        """Whether the peer has given up its table, so that blocks no longer depend on each other."""
        self._begin_table()

    def _begin_table(self) -> None:
        """Follow the peer's table."""
        self.stands_alone = False
        # Of one field, which Huffman's code makes 8/5 as long: `_with_table` counts them together.
        self._decoder = Decoder(2 * MAX_BLOCK)
        # What it had before it read our settings. One that forgets to say that it follows them is understood as well.
        self._decoder.max_allowed_table_size = TABLE_SIZE

    def read(self, data: bytes) -> Block:
        """Return the fields of one whole header block. Raises `ConnectionFault` with COMPRESSION_ERROR.

        A list beyond twice the limit comes back without its fields, and a size above the limit.
        """
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
            pairs, total = self._decoded(decoder, data)
        except (HPACKError, IndexError, ValueError, TypeError) as error:
            # Not hpack's words: they go to the peer, and some show addresses in our memory.
            why = f"cannot decode headers: {error.__class__.__name__}"
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, why) from error
        if decoder.header_table_size == 0:
            self.stands_alone = True
            self._decoder = None
        if total > self._most:
            return Block((), total)
        return Block(tuple([field_of(bytes(name), bytes(value)) for name, value in pairs]), total)

    def _decoded(self, decoder: Decoder, data: bytes) -> tuple[list[tuple[bytes, bytes]], int]:
        """Return the fields up to the limit, and the size of all of them or of more than the limit.

        One by one, where `hpack` would take all: what is too long must still change the table as it does the peer's.
        """
        pairs: list[tuple[bytes, bytes]] = []
        position, total = 0, 0
        while position < len(data):
            end = _end_of_field(data, position)
            first = data[position]
            if first & 0xE0 == 0x20:
                if total:
                    raise ValueError("a table size update after a field")
                decoder.decode(data[position:end], raw=True)
            elif total <= self._most or first & 0xC0 == 0x40:
                [(name, value)] = decoder.decode(data[position:end], raw=True)
                total += len(name) + len(value) + ENTRY_OVERHEAD
                if total <= self._most:
                    pairs.append((name, value))
            position = end
        return pairs, total

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
                if total > self._most:
                    return Block((), total)
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


def _end_of_field(data: bytes, start: int) -> int:
    """Return where what begins at `start` ends. Raises ValueError or IndexError when that is beyond the block."""
    value_at = _value_of_field(data, start)
    if value_at >= 0:
        return _end_of_value(data, value_at)
    return _number(data, start, 0x7F if data[start] >= 0x80 else 0x1F)[1]


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
        # Literals that are not indexed (or static fields): they leave every table as it is.
        found = bytes(Encoder().encode([(name, value, (name, value) not in _STATIC_FIELDS)], huffman=False))
        if found[0] & 0xF0 == 0x10:
            # The same without the mark of a secret: a literal that is only not indexed (RFC 7541 §6.2.2).
            found = bytes((found[0] & 0x0F,)) + found[1:]
        if len(key) <= MAX_CACHED_BYTES:
            _RAWS.put(key, found)
    return found


_STATIC_FIELDS: Final = frozenset(STATIC)


def encode_all(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Return the HPACK bytes of `pairs`."""
    return b"".join([encode(name, value) for name, value in pairs])
