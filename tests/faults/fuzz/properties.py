"""Mutate AMQP properties and headers as bytes."""

import random
from collections.abc import Callable
from typing import Final

from outplan.contract.topology import build_topology
from outplan.rabbitmq.frames import PROPERTIES
from tests.support.raw_message import Properties, Table
from tests.support.wire import encode_table

# A frame_max of 131,072 leaves a content header hardly more room.
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
# Sizes of header values, by the byte that names their type.
FIXED_SIZES: Final = {
    **dict.fromkeys(b"tbB", 1), **dict.fromkeys(b"su", 2), **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"lLdT", 8), b"D"[0]: 5, b"V"[0]: 0,
}  # fmt: skip
_REPLY_QUEUES: Final = (
    b"gone", build_topology().rejected.name.encode(), build_topology().commands.name.encode(),
    b"\xff",
    b"amq.rabbitmq.reply-to.g1h2AA5yZXBseUAxMjcuMC4wLjEAAAB", b"amq.rabbitmq.reply-to.", b"q" * 255,
)  # fmt: skip


class PropertyMutator:
    """Mutate one property or header of a message.

    ``publishable`` leaves out what the broker refuses from a publisher, which no worker sees:
    tables with wrong lengths, a CC that is no list, another user's user_id, an invalid
    delivery_mode.
    """

    def __init__(self, rng: random.Random, publishable: bool) -> None:
        self._rng = rng
        self._publishable = publishable
        self._mutations: list[tuple[Callable[[Properties, Table], None], int]] = [
            (self._change_text, 6),
            (self._change_message_id, 4),
            (self._change_type, 4),
            (self._change_encoding, 3),
            (self._change_timestamp, 2),
            (self._change_reply_to, 2),
            (self._change_octets, 2),
            (self._add_headers, 8),
            (self._add_large_header, 1),
        ]

    def mutate(self, properties: Properties, table: Table) -> None:
        """Change one property or header in place."""
        mutations, weights = zip(*self._mutations, strict=True)
        self._rng.choices(mutations, weights)[0](properties, table)

    def _make_text(self) -> bytes:
        if self._rng.random() < 0.2:
            return self._rng.randbytes(self._rng.randrange(256))
        return self._rng.choice(_HOSTILE_TEXTS)

    def _change_text(self, properties: Properties, _: Table) -> None:
        name = self._rng.choice(_TEXTS)
        if self._publishable and name in ("user_id", "expiration", "reply_to", "correlation_id"):
            # The broker checks these two: a publisher's own name, and a long expiration.
            properties["user_id"], properties["expiration"] = b"guest", b"3600000"
        else:
            properties[name] = self._make_text()

    def _change_message_id(self, properties: Properties, _: Table) -> None:
        if self._rng.random() < 0.3:
            del properties["message_id"]
        else:
            properties["message_id"] = self._make_text()

    def _change_type(self, properties: Properties, _: Table) -> None:
        properties["message_type"] = self._make_text()

    def _change_encoding(self, properties: Properties, _: Table) -> None:
        properties["content_encoding"] = self._rng.choice(_ENCODINGS)

    def _change_timestamp(self, properties: Properties, _: Table) -> None:
        properties["timestamp"] = self._rng.choice(_TIMES)

    def _change_reply_to(self, properties: Properties, _: Table) -> None:
        properties["reply_to"] = self._rng.choice(_REPLY_QUEUES)

    def _change_octets(self, properties: Properties, _: Table) -> None:
        properties["priority"] = self._rng.randrange(256)
        properties["delivery_mode"] = self._rng.randrange(1, 3 if self._publishable else 256)

    def _add_headers(self, _: Properties, table: Table) -> None:
        for _n in range(self._rng.choice((1, 1, 2, 5))):
            self._add_header(table, self._make_name(), self._make_value(0))

    def _add_header(self, table: Table, name: bytes, value: bytes) -> None:
        # RabbitMQ 4 may keep only one of several headers with the same name.
        if not self._publishable or all(name != other for other, _ in table):
            table.append((name, value))

    def _add_large_header(self, _: Properties, table: Table) -> None:
        """Add a header of up to a frame's size: wide, deep, or one long text."""
        size = int(10 ** self._rng.uniform(2, 5.2))
        if not self._publishable and self._rng.random() < 0.3:
            table += [(b"", b"V")] * (min(size, MAX_TABLE - 200) // 3)
            table.append((self._rng.choice((b"traceparent", b"tracestate")), b"S\0\0\0\x01x"))
            return
        kinds: list[Callable[[int], bytes]] = [
            _make_wide_array,
            _make_wide_table,
            _make_deep_array,
            _make_long_text,
        ]
        value = self._rng.choice(kinds)(min(size, MAX_TABLE))
        self._add_header(table, self._make_name(), value)

    def _make_name(self) -> bytes:
        if self._rng.random() < 0.05:
            return self._rng.choice((b"CC", b"BCC")) if not self._publishable else b"cc"
        return self._rng.choice(_NAMES)

    def _make_value(self, depth: int) -> bytes:
        # The broker rewrites ``L`` as ``l``, which means the same.
        kind = self._rng.choice(b"SSStbBsuIilfdDTVxAF" + (b"" if self._publishable else b"L"))
        if kind == b"t"[0] and self._publishable:
            return b"t" + self._rng.choice((b"\0", b"\1"))  # The broker normalizes others.
        if kind in b"fd" and self._publishable:  # Avoid NaN and infinity.
            return bytes([kind]) + b"\x40" + self._rng.randbytes(FIXED_SIZES[kind] - 1)
        if (size := FIXED_SIZES.get(kind)) is not None:
            return bytes([kind]) + self._rng.randbytes(size)
        if kind == b"A"[0] and depth < 4:
            inner = b"".join(self._make_value(depth + 1) for _ in range(self._rng.randrange(4)))
        elif kind == b"F"[0] and depth < 4:
            inner = encode_table(
                [
                    (self._make_name(), self._make_value(depth + 1))
                    for _ in range(self._rng.randrange(4))
                ]
            )
        else:
            kind, inner = b"S"[0], self._make_text()
        return bytes([kind]) + self._encode_length(inner) + inner

    def _encode_length(self, inner: bytes) -> bytes:
        is_wrong = not self._publishable and self._rng.random() < 0.05
        size = self._rng.randrange(2**32) if is_wrong else len(inner)
        return size.to_bytes(4, "big")


def _with_length(kind: bytes, inner: bytes) -> bytes:
    return kind + len(inner).to_bytes(4, "big") + inner


def _make_wide_array(size: int) -> bytes:
    return _with_length(b"A", b"V" * size)


def _make_wide_table(size: int) -> bytes:
    return _with_length(b"F", b"\0V" * (size // 2))


def _make_deep_array(size: int) -> bytes:
    levels = size // 5
    heads = (b"A" + (5 * n + 1).to_bytes(4, "big") for n in range(levels))
    return b"".join(reversed(list(heads))) + b"V"


def _make_long_text(size: int) -> bytes:
    return _with_length(b"S", b"0" * size)
