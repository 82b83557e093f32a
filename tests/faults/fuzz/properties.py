"""Hostile AMQP properties, as the bytes that stand on the wire: most clients can't write them."""

import random
from collections.abc import Callable
from typing import Final

from outplan.contract.topology import topology
from outplan.rabbitmq.frames import PROPERTIES
from tests.support.wire import table_bytes

Properties = dict[str, bytes | int]
Table = list[tuple[bytes, bytes]]

# With a frame_max of 131,072 a content header has room for not much more.
MAX_TABLE: Final = 130_000
_TEXTS: Final = tuple(name for _, name, kind in PROPERTIES if kind == "text")
_HOSTILE_TEXTS: Final = (
    b"", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a" * 255, b"\xff" * 255,
    "μ".encode() * 127, b"\0", b"\n", b"$where", b"a.b.#.*", b"\x1b[2J", "\u202e\ufeff".encode(),
    b"outplan_create", b"outplan_update", b"OUTPLAN_CREATE", b"outplan_create ", b"None", b"null",
)  # fmt: skip
_ENCODINGS: Final = (b"", b"utf-8", b"UTF-8", b"Identity", b"gzip", b"utf-16", b"utf8", b"\xff")
_TIMES: Final = (0, -1, 1_764_000_000_000, 2**63 - 1, -(2**63), 253_402_300_800)
_NAMES: Final = (
    b"traceparent", b"tracestate", b"outplan_id", b"x-delivery-count", b"x-acquired-count",
    b"x-problem", b"x-problem-code", b"x-death", b"x-headers-dropped", b"x-original-user-id",
    b"x-original-cc", b"x-rejected-at", b"", b"\xff", "ключ".encode(), b"n" * 255,
)  # fmt: skip
# Of the values of a header table, by the byte that names their kind.
FIXED_SIZES: Final = {
    **dict.fromkeys(b"tbB", 1), **dict.fromkeys(b"su", 2), **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"lLdT", 8), b"D"[0]: 5, b"V"[0]: 0,
}  # fmt: skip
_REPLY_QUEUES: Final = (
    b"gone", topology().rejected.name.encode(), topology().commands.name.encode(), b"\xff",
    b"amq.rabbitmq.reply-to.g1h2AA5yZXBseUAxMjcuMC4wLjEAAAB", b"amq.rabbitmq.reply-to.", b"q" * 255,
)  # fmt: skip


def content_header(properties: Properties, table: Table | None, size: int) -> bytes:
    """A content header frame's payload."""
    flags, parts = 0, []
    for flag, name, kind in PROPERTIES:
        if kind == "table" and table is not None:
            flags |= flag
            data = table_bytes(table)
            parts.append(len(data).to_bytes(4, "big") + data)
        elif (value := properties.get(name)) is not None:
            flags |= flag
            parts.append(_encoded(kind, value))
    head = (60).to_bytes(2, "big") + bytes(2) + size.to_bytes(8, "big") + flags.to_bytes(2, "big")
    return head + b"".join(parts)


def _encoded(kind: str, value: bytes | int) -> bytes:
    if isinstance(value, bytes):
        return bytes([len(value)]) + value
    return value.to_bytes(1, "big") if kind == "octet" else value.to_bytes(8, "big", signed=True)


class HostileProperties:
    """Takes a message's properties and spoils one of them.

    ``passable`` leaves out what the broker refuses to take from a publisher, so that no worker
    ever sees it: tables that lie about their lengths, CC that is no list, another's user_id, a
    delivery_mode that there is not.
    """

    def __init__(self, luck: random.Random, passable: bool) -> None:
        self._luck = luck
        self._passable = passable
        self._ways: list[tuple[Callable[[Properties, Table], None], int]] = [
            (self._any_text, 6),
            (self._message_id, 4),
            (self._type, 4),
            (self._encoding, 3),
            (self._time, 2),
            (self._reply_to, 2),
            (self._octet, 2),
            (self._header, 8),
            (self._heavy_header, 1),
        ]

    def spoil(self, properties: Properties, table: Table) -> None:
        """Change one property or header, in place."""
        ways, weights = zip(*self._ways, strict=True)
        self._luck.choices(ways, weights)[0](properties, table)

    def _text(self) -> bytes:
        if self._luck.random() < 0.2:
            return self._luck.randbytes(self._luck.randrange(256))
        return self._luck.choice(_HOSTILE_TEXTS)

    def _any_text(self, properties: Properties, _: Table) -> None:
        name = self._luck.choice(_TEXTS)
        if self._passable and name in ("user_id", "expiration", "reply_to", "correlation_id"):
            # A publisher may claim its own name, and a time that does not pass in a test.
            properties["user_id"], properties["expiration"] = b"guest", b"3600000"
        else:
            properties[name] = self._text()

    def _message_id(self, properties: Properties, _: Table) -> None:
        if self._luck.random() < 0.3:
            del properties["message_id"]
        else:
            properties["message_id"] = self._text()

    def _type(self, properties: Properties, _: Table) -> None:
        properties["message_type"] = self._text()

    def _encoding(self, properties: Properties, _: Table) -> None:
        properties["content_encoding"] = self._luck.choice(_ENCODINGS)

    def _time(self, properties: Properties, _: Table) -> None:
        properties["timestamp"] = self._luck.choice(_TIMES)

    def _reply_to(self, properties: Properties, _: Table) -> None:
        properties["reply_to"] = self._luck.choice(_REPLY_QUEUES)

    def _octet(self, properties: Properties, _: Table) -> None:
        properties["priority"] = self._luck.randrange(256)
        properties["delivery_mode"] = self._luck.randrange(1, 3 if self._passable else 256)

    def _header(self, _: Properties, table: Table) -> None:
        for _n in range(self._luck.choice((1, 1, 2, 5))):
            name = self._name()
            # Of several headers with one name RabbitMQ 4 may keep but one.
            if not self._passable or all(name != other for other, _ in table):
                table.append((name, self._value(0)))

    def _heavy_header(self, _: Properties, table: Table) -> None:
        """Tables of up to what a frame holds: wide, deep, or one long text."""
        size = int(10 ** self._luck.uniform(2, 5.2))
        if not self._passable and self._luck.random() < 0.3:
            table += [(b"", b"V")] * (min(size, MAX_TABLE - 200) // 3)
            table.append((self._luck.choice((b"traceparent", b"tracestate")), b"S\0\0\0\x01x"))
            return
        kinds: list[Callable[[int], bytes]] = [_wide_array, _wide_table, _deep, _long_text]
        table.append((self._name(), self._luck.choice(kinds)(min(size, MAX_TABLE))))

    def _name(self) -> bytes:
        if self._luck.random() < 0.05:
            return self._luck.choice((b"CC", b"BCC")) if not self._passable else b"cc"
        return self._luck.choice(_NAMES)

    def _value(self, depth: int) -> bytes:
        # The broker writes ``L`` down as ``l``, which is the same.
        kind = self._luck.choice(b"SSStbBsuIilfdDTVxAF" + (b"" if self._passable else b"L"))
        if kind == b"t"[0] and self._passable:
            return b"t" + self._luck.choice((b"\0", b"\1"))  # The broker knows no other truth,
        if kind in b"fd" and self._passable:  # and no numbers that are none.
            return bytes([kind]) + b"\x40" + self._luck.randbytes(FIXED_SIZES[kind] - 1)
        if (size := FIXED_SIZES.get(kind)) is not None:
            return bytes([kind]) + self._luck.randbytes(size)
        if kind == b"A"[0] and depth < 4:
            inner = b"".join(self._value(depth + 1) for _ in range(self._luck.randrange(4)))
        elif kind == b"F"[0] and depth < 4:
            inner = table_bytes(
                [(self._name(), self._value(depth + 1)) for _ in range(self._luck.randrange(4))]
            )
        else:
            kind, inner = b"S"[0], self._text()
        return bytes([kind]) + self._length(inner) + inner

    def _length(self, inner: bytes) -> bytes:
        lies = not self._passable and self._luck.random() < 0.05
        size = self._luck.randrange(2**32) if lies else len(inner)
        return size.to_bytes(4, "big")


def _sized(kind: bytes, inner: bytes) -> bytes:
    return kind + len(inner).to_bytes(4, "big") + inner


def _wide_array(size: int) -> bytes:
    return _sized(b"A", b"V" * size)


def _wide_table(size: int) -> bytes:
    return _sized(b"F", b"\0V" * (size // 2))


def _deep(size: int) -> bytes:
    levels = size // 5
    heads = (b"A" + (5 * n + 1).to_bytes(4, "big") for n in range(levels))
    return b"".join(reversed(list(heads))) + b"V"


def _long_text(size: int) -> bytes:
    return _sized(b"S", b"0" * size)
