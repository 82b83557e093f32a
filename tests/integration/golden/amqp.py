"""AMQP 0-9-1 message properties as bytes on the wire, and as lists that JSON can hold.

pika turns a header's value into a Python value and forgets its type. The recording needs both, so
this module reads and writes the content header itself (specification, sections 2.3.5 and 4.2.6).

A property is ``[name, value]``. The value of ``headers`` is a list of ``[name, type, value]``,
where the type is the letter on the wire. The order is the order on the wire.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pika import spec

# A text, or {"hex": ...} for bytes that are not UTF-8.
Text = str | dict[str, str]
Header = tuple[str | bytes, str, Any]

_BASIC_CLASS: Final = 60
# The flag, the name and the kind of each property, in the order of the wire.
_PROPERTIES: Final = (
    (0x8000, "content_type", "text"),
    (0x4000, "content_encoding", "text"),
    (0x2000, "headers", "table"),
    (0x1000, "delivery_mode", "octet"),
    (0x0800, "priority", "octet"),
    (0x0400, "correlation_id", "text"),
    (0x0200, "reply_to", "text"),
    (0x0100, "expiration", "text"),
    (0x0080, "message_id", "text"),
    (0x0040, "timestamp", "time"),
    (0x0020, "type", "text"),
    (0x0010, "user_id", "text"),
    (0x0008, "app_id", "text"),
    (0x0004, "cluster_id", "text"),
)
_NUMBERS: Final = {
    "b": ">b", "B": ">B", "s": ">h", "u": ">H", "I": ">i", "i": ">I", "l": ">q", "L": ">q",
    "f": ">f", "d": ">d", "T": ">q", "t": ">B",
}  # fmt: skip


class WireProperties:
    """Stand in for pika's BasicProperties, and keep the bytes as they are."""

    INDEX = _BASIC_CLASS

    def __init__(self, raw: bytes = b"\x00\x00") -> None:
        self.raw = raw

    def encode(self) -> list[bytes]:
        return [self.raw]

    def decode(self, encoded: bytes, offset: int = 0) -> None:
        self.raw = encoded[offset:]


@contextmanager
def wire_properties() -> Iterator[None]:
    """Have pika hand received properties over as `WireProperties` while the block runs."""
    usual = spec.props[_BASIC_CLASS]
    spec.props[_BASIC_CLASS] = WireProperties
    try:
        yield
    finally:
        spec.props[_BASIC_CLASS] = usual


def text_of(data: bytes) -> Text:
    """Return UTF-8 as text, and any other bytes as hexadecimal digits."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"hex": data.hex()}


# --- writing ----------------------------------------------------------------------------------


def encode_properties(properties: Mapping[str, Any]) -> WireProperties:
    """Write properties by name: text or bytes, integers, and ``headers`` as `Header` tuples."""
    flags, parts = 0, []
    for flag, name, kind in _PROPERTIES:
        if name in properties:
            flags |= flag
            parts.append(_property(kind, properties[name]))
    assert len(parts) == len(properties), f"unknown property among {list(properties)}"
    return WireProperties(struct.pack(">H", flags) + b"".join(parts))


def _property(kind: str, value: Any) -> bytes:
    if kind == "text":
        return _short(value)
    if kind == "table":
        return _table(value)
    return struct.pack(">B" if kind == "octet" else ">q", value)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _short(value: str | bytes) -> bytes:
    data = _bytes(value)
    return struct.pack(">B", len(data)) + data


def _long(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _table(headers: list[Header]) -> bytes:
    return _long(b"".join(_short(name) + _value(kind, value) for name, kind, value in headers))


def _value(kind: str, value: Any) -> bytes:
    return kind.encode() + _content(kind, value)


def _content(kind: str, value: Any) -> bytes:
    if kind in _NUMBERS:
        return struct.pack(_NUMBERS[kind], value)
    if kind in "Sx":
        return _long(_bytes(value))
    if kind == "D":
        return struct.pack(">Bi", *value)
    if kind == "A":
        return _long(b"".join(_value(*item) for item in value))
    return _table(value) if kind == "F" else b""


# --- reading ----------------------------------------------------------------------------------


def decode_properties(properties: WireProperties) -> list[list[Any]]:
    """Read properties into lists; fail where that would lose a byte."""
    reader = _Reader(properties.raw)
    (flags,) = reader.unpack(">H")
    assert not flags & 0x0003, f"unknown flags: {properties.raw!r}"
    found = [[name, reader.property(kind)] for flag, name, kind in _PROPERTIES if flags & flag]
    assert reader.ended, f"bytes past the properties: {properties.raw!r}"
    return found


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def ended(self) -> bool:
        return self._at == len(self._data)

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def property(self, kind: str) -> Any:
        if kind == "text":
            return self._short()
        if kind == "table":
            return self._table()
        return self.unpack(">B" if kind == "octet" else ">q")[0]

    def _take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        assert self._at <= len(self._data), f"properties end early: {self._data!r}"
        return self._data[start : self._at]

    def _short(self) -> Text:
        return text_of(self._take(self.unpack(">B")[0]))

    def _long(self) -> bytes:
        return self._take(self.unpack(">I")[0])

    def _table(self) -> list[list[Any]]:
        inner, found = _Reader(self._long()), []
        while not inner.ended:
            found.append([inner._short(), *inner._value()])
        return found

    def _array(self) -> list[list[Any]]:
        inner, found = _Reader(self._long()), []
        while not inner.ended:
            found.append(inner._value())
        return found

    def _value(self) -> list[Any]:
        kind = chr(self.unpack(">B")[0])
        return [kind, self._content(kind)]

    def _content(self, kind: str) -> Any:
        if kind in _NUMBERS:
            return self.unpack(_NUMBERS[kind])[0]
        if kind == "D":
            return list(self.unpack(">Bi"))
        if kind == "A":
            return self._array()
        if kind == "F":
            return self._table()
        if kind == "V":
            return None
        assert kind in "Sx", f"unknown type of header {kind!r}"
        data = self._long()
        return text_of(data) if kind == "S" else data.hex()
