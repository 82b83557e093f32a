"""Read and write AMQP 0-9-1 content frames (specification sections 2.3.5 and 4.2.6). PURE.

The driver decodes every property of every message into Python objects and encodes them again. That
breaks two promises. A property that it cannot decode (a message_id that is not UTF-8, a timestamp
past the year 9999) ends the connection, again at each redelivery. And it writes some values
differently from how it read them (floats lose half their bits). So this module reads and writes
messages and keeps properties as bytes; connections and channels stay with the driver. A property
test compares this module with the driver's codec.
"""

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from pamqp import decode

from outplan.contract.amqp import DELIVERY_COUNT, JSON, TRACE_HEADERS, Publication
from outplan.contract.fields import PUBLISHER

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
FRAME_END: Final = 0xCE
HEARTBEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"

CONNECTION_CLOSE: Final = 0x000A0032
PUBLISH: Final = 0x003C0028
RETURN: Final = 0x003C0032
DELIVER: Final = 0x003C003C
ACK: Final = 0x003C0050
NACK: Final = 0x003C0078

_BASIC_CLASS: Final = 60
_PERSISTENT: Final = 2
_FRAME_OVERHEAD: Final = 8
_MANDATORY: Final = 1

FRAME_HEAD: Final = struct.Struct(">BHI")
CONTENT_HEAD: Final = struct.Struct(">HHQH")
_u8: Final = struct.Struct(">B")
U32: Final = struct.Struct(">I")
_i64: Final = struct.Struct(">q")
_u64: Final = struct.Struct(">Q")

# Flag bit, name and kind of each property, in wire order.
PROPERTIES: Final = (
    (0x8000, "content_type", "text"),
    (0x4000, "content_encoding", "text"),
    (0x2000, "table", "table"),
    (0x1000, "delivery_mode", "octet"),
    (0x0800, "priority", "octet"),
    (0x0400, "correlation_id", "text"),
    (0x0200, "reply_to", "text"),
    (0x0100, "expiration", "text"),
    (0x0080, "message_id", "text"),
    (0x0040, "timestamp", "time"),
    (0x0020, "message_type", "text"),
    (0x0010, "user_id", "text"),
    (0x0008, "app_id", "text"),
    (0x0004, "cluster_id", "text"),
)
_HEADERS_FLAG: Final = 0x2000
_MAX_NESTED: Final = 4_096
_SIZED: Final = b"SAFx"
_ROUTING: Final = frozenset({b"CC", b"BCC"})
# Frame size to use if the broker sets no limit, which the protocol writes as 0.
_UNLIMITED_FRAME: Final = 131_072
_FIXED_SIZES: Final = {
    kind: size
    for kinds, size in ((b"tbB", 1), (b"su", 2), (b"Iif", 4), (b"lLdT", 8), (b"D", 5), (b"V", 0))
    for kind in kinds
}
# The headers that the service reads, all in one pass: a table may have 60,000 fields.
_READ_TOGETHER: Final = frozenset(name.encode() for name in (*TRACE_HEADERS, DELIVERY_COUNT))

# Raised by decoding a value that is out of range, or nested past the interpreter's depth.
_UNREADABLE: Final = (ValueError, OverflowError, OSError, RecursionError, IndexError, struct.error)


class Malformed(ValueError):
    """Raised when bytes break the protocol."""


@dataclass(slots=True)
class WireProperties:
    """A message's properties. Text that is not UTF-8 carries surrogate escapes.

    ``flags`` and ``raw`` are the bytes as they came; ``spans`` has the start and end of each
    property in ``raw``.
    """

    flags: int
    raw: bytes
    spans: dict[str, tuple[int, int]]
    body_size: int
    content_type: str | None = None
    content_encoding: str | None = None
    table: bytes = b""
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    message_type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None
    _read: dict[bytes, bytes] | None = field(default=None, repr=False, compare=False)

    def header(self, name: str) -> Any:
        """Return the value of one header; None if it is absent or has no Python form.

        A header that cannot be decoded does not hide the others. A list or table of more than
        4 KiB counts as one that cannot.
        """
        wanted = name.encode("utf-8", "surrogateescape")
        if wanted not in _READ_TOGETHER:
            return _python_form(_first_values(self.table, {wanted}).get(wanted))
        if self._read is None:
            self._read = _first_values(self.table, _READ_TOGETHER)
        return _python_form(self._read.get(wanted))

    @property
    def headers(self) -> dict[str, Any]:
        """Every header; None for one that has no Python form."""
        found: dict[str, Any] = {}
        try:
            for name, whole in _fields(self.table):
                text = name.decode("utf-8", "surrogateescape")
                if text not in found:
                    found[text] = _python_form(whole[1 + len(name) :])
        except (Malformed, *_UNREADABLE):
            return {}
        return found

    def replace(self, changes: Mapping[str, bytes | None]) -> "WireProperties":
        """Return a copy with these properties' bytes replaced, or left out for None."""
        flags, parts = 0, []
        for flag, name, _ in PROPERTIES:
            span = self.spans.get(name)
            data = changes[name] if name in changes else self.raw[slice(*span)] if span else None
            if data is not None:
                flags |= flag
                parts.append(data)
        return read_properties(flags, b"".join(parts), self.body_size)


def _first_values(table: bytes, names: Collection[bytes]) -> dict[bytes, bytes]:
    """Return the bytes of each name's first value, as far as the table can be read."""
    sought = {name for name in names if name in table}
    found: dict[bytes, bytes] = {}
    if sought:
        with suppress(Malformed, *_UNREADABLE):
            for name, whole in _fields(table):
                if name in sought:
                    found.setdefault(name, whole[1 + len(name) :])
                    if len(found) == len(sought):
                        break
    return found


def _python_form(value: bytes | None) -> Any:
    # For each item in a list or table, the driver copies the rest of it.
    if value is None or (value[:1] in (b"A", b"F") and len(value) > _MAX_NESTED):
        return None
    try:
        return decode.embedded_value(value)[1]
    except _UNREADABLE:
        return None


def read_content_header(payload: bytes) -> WireProperties:
    """Decode a content header frame's payload. Raises Malformed."""
    try:
        _, _, size, flags = CONTENT_HEAD.unpack_from(payload)
    except struct.error as error:
        raise Malformed(f"content header: {error}") from error
    return read_properties(flags, payload[CONTENT_HEAD.size :], size)


def write_content_header(properties: WireProperties, body_size: int) -> bytes:
    """Encode a content header frame's payload with the properties as they came."""
    return CONTENT_HEAD.pack(_BASIC_CLASS, 0, body_size, properties.flags) + properties.raw


def read_properties(flags: int, raw: bytes, body_size: int) -> WireProperties:
    """Decode the bytes of a message's properties. Raises Malformed."""
    spans: dict[str, tuple[int, int]] = {}
    properties = WireProperties(flags, raw, spans, body_size)
    offset = 0
    try:
        for flag, name, kind in PROPERTIES:
            if not flags & flag:
                continue
            value: Any
            if kind == "text":
                end = offset + 1 + raw[offset]
                value = raw[offset + 1 : end].decode("utf-8", "surrogateescape")
            elif kind == "table":
                end = offset + 4 + U32.unpack_from(raw, offset)[0]
                value = raw[offset + 4 : end]
            elif kind == "octet":
                value, end = raw[offset], offset + 1
            else:
                value, end = _i64.unpack_from(raw, offset)[0], offset + 8
            setattr(properties, name, value)
            spans[name] = (offset, end)
            offset = end
    except (struct.error, IndexError) as error:
        raise Malformed(f"content header: {error}") from error
    if offset > len(raw):
        raise Malformed("content header: properties past its end")
    return properties


def read_deliver(payload: bytes) -> tuple[str, int, bool, str, str]:
    """Decode basic.deliver: consumer tag, delivery tag, redelivered, exchange, routing key."""
    tag_end = 5 + payload[4]
    (delivery_tag,) = _u64.unpack_from(payload, tag_end)
    exchange_at = tag_end + 9
    key_at = exchange_at + 1 + payload[exchange_at]
    return (
        payload[5:tag_end].decode("utf-8", "surrogateescape"),
        delivery_tag,
        bool(payload[tag_end + 8] & 1),
        payload[exchange_at + 1 : key_at].decode("utf-8", "surrogateescape"),
        payload[key_at + 1 : key_at + 1 + payload[key_at]].decode("utf-8", "surrogateescape"),
    )


def read_close(payload: bytes) -> tuple[int, str]:
    """Decode connection.close: reply code and text."""
    code = int.from_bytes(payload[4:6], "big")
    return code, payload[7 : 7 + payload[6]].decode("utf-8", "replace")


def read_confirm(payload: bytes) -> tuple[int, bool]:
    """Decode basic.ack or basic.nack from the broker: delivery tag, multiple."""
    return _u64.unpack_from(payload, 4)[0], bool(payload[12] & 1)


def write_publication(
    channel: int, publication: Publication, frame_max: int, user: str | None = None
) -> bytes:
    """Encode one message as its frames: basic.publish, the content header, the body.

    ``user`` is the connection's own. The broker refuses a copy with another user's ``user_id``, so
    that goes into the header ``x-original-user-id``.
    """
    method = b"".join(
        (
            U32.pack(PUBLISH),
            b"\x00\x00",
            _text(publication.exchange),
            _text(publication.routing_key),
            b"\x01" if publication.mandatory else b"\x00",
        )
    )
    frame_max = frame_max or _UNLIMITED_FRAME
    room = frame_max - CONTENT_HEAD.size - _FRAME_OVERHEAD
    for keep in ("all", "problem", "code"):
        flags, properties = _properties(publication, user, keep)
        if len(properties) <= room:
            break
    header = CONTENT_HEAD.pack(_BASIC_CLASS, 0, len(publication.body), flags) + properties
    size = frame_max - _FRAME_OVERHEAD
    body = publication.body
    return b"".join(
        (
            _frame(METHOD, channel, method),
            _frame(HEADER, channel, header),
            *(_frame(BODY, channel, body[at : at + size]) for at in range(0, len(body), size)),
        )
    )


def _properties(publication: Publication, user: str | None, keep: str) -> tuple[int, bytes]:
    if publication.original is not None:
        original = publication.original.properties
        assert isinstance(original, WireProperties)
        return _copy_properties(original, publication.headers, user, keep)
    return _new_properties(publication)


def _new_properties(publication: Publication) -> tuple[int, bytes]:
    flags = 0x8000 | _HEADERS_FLAG | 0x1000 | 0x0008
    parts = [_text(JSON), write_table(publication.headers), _u8.pack(_PERSISTENT)]
    for flag, value in ((0x0400, publication.correlation_id), (0x0080, publication.message_id)):
        if value is not None:
            flags |= flag
            parts.append(_text(value))
    if publication.timestamp is not None:
        flags |= 0x0040
        parts.append(_i64.pack(publication.timestamp))
    if publication.type is not None:
        flags |= 0x0020
        parts.append(_text(publication.type))
    parts.append(_text(PUBLISHER))
    return flags, b"".join(parts)


def _copy_properties(
    original: WireProperties, added: Mapping[str, Any], user: str | None, keep: str
) -> tuple[int, bytes]:
    """Return flags and bytes of the original properties, with headers added.

    Leave out another user's ``user_id``. Where a frame has no room for all headers, ``keep`` says
    which to keep.
    """
    flags, raw = original.flags | _HEADERS_FLAG, original.raw
    headers = dict(added)
    start = end = sum(len(raw[slice(*original.spans[n])]) for n in _before_table(original))
    if "table" in original.spans:
        start, end = original.spans["table"]
    tail = raw[end:]
    if original.user_id is not None and original.user_id != user:
        flags &= ~0x0010
        first, last = original.spans["user_id"]
        tail = raw[end:first] + raw[last:]
        headers["x-original-user-id"] = original.user_id
    sent = drop_headers(original.table, headers.keys()) if keep == "all" else b""
    if keep != "all":
        headers["x-headers-dropped"] = True
    if keep == "code":
        headers.pop("x-problem", None)
    table = sent + write_table(headers)[4:]
    return flags, b"".join((raw[:start], U32.pack(len(table)), table, tail))


def _before_table(original: WireProperties) -> list[str]:
    return [name for name in ("content_type", "content_encoding") if name in original.spans]


def drop_headers(table: bytes, names: Iterable[str]) -> bytes:
    """Return a header table's bytes without these fields and the broker's own counts.

    Rename ``CC`` and ``BCC``: the broker would route the copy by them again.
    """
    dropped = {name.encode() for name in names} | {b"x-delivery-count", b"x-acquired-count"}
    try:
        return b"".join(
            [
                _rename_routing(name, whole) if name in _ROUTING else whole
                for name, whole in _fields(table)
                if name not in dropped
            ]
        )
    except (Malformed, struct.error, IndexError):
        return b""


def _rename_routing(name: bytes, whole: bytes) -> bytes:
    renamed = b"x-original-" + name.lower()
    return _u8.pack(len(renamed)) + renamed + whole[1 + len(name) :]


def _fields(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, end = 0, len(table)
    while at < end:
        type_at = at + 1 + table[at]
        kind = table[type_at]
        after = type_at + 1
        if kind in _FIXED_SIZES:
            after += _FIXED_SIZES[kind]
        elif kind in _SIZED:
            after += 4 + U32.unpack_from(table, after)[0]
        else:
            raise Malformed(f"header of unknown type {chr(kind)!r}")
        yield table[at + 1 : type_at], table[at:after]
        at = after


def write_table(headers: Mapping[str, Any]) -> bytes:
    """Encode a header table of text, integers and booleans, its length in front."""
    fields = b"".join(_text(name) + _value(value) for name, value in headers.items())
    return U32.pack(len(fields)) + fields


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape")
        return b"S" + U32.pack(len(data)) + data
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    return b"l" + _i64.pack(value)


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    return _u8.pack(len(data)) + data


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return FRAME_HEAD.pack(kind, channel, len(payload)) + payload + b"\xce"
