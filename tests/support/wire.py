"""Draw AMQP properties and headers; encode and decode whole messages."""

import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from hypothesis import strategies as st
from pamqp import commands, frame, header

from outplan.contract.amqp import Delivery, Publication
from outplan.rabbitmq.frames import (
    FRAME_END,
    FRAME_HEAD,
    HEADER,
    U32,
    WireProperties,
    read_content_header,
    write_publication,
)

FRAME_MAX: Final = 131_072
Field = tuple[str, bytes]

# --- strategies --------------------------------------------------------------------------------


def has_at_most(limit: int) -> Callable[[str], bool]:
    """Return a test for text of up to ``limit`` bytes."""
    return lambda text: len(text.encode()) <= limit


text = st.text(st.characters(exclude_categories=["Cs"]))
short_text = text.filter(has_at_most(255))
# Hypothesis draws names from the code; headers that RabbitMQ reads have their own tests.
BROKER_HEADERS: Final = {"x-delivery-count", "x-acquired-count", "CC", "BCC"}
names = text.filter(has_at_most(128)).filter(lambda name: name not in BROKER_HEADERS)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
)
properties: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "content_type": short_text,
        "content_encoding": short_text,
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 255),
        "correlation_id": short_text,
        "reply_to": short_text,
        "expiration": short_text,
        "message_id": short_text,
        "timestamp": moments,
        "message_type": short_text,
        "user_id": short_text,
        "app_id": short_text,
    },
)
floats = st.floats(width=32, allow_nan=False)
decimals = st.builds(
    lambda mantissa, scale: Decimal(mantissa).scaleb(-scale),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 9),
)
pamqp_values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | floats
    | decimals
    | text
    | moments
    | st.none()
    | st.binary().map(bytearray),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
pamqp_tables = st.dictionaries(names, pamqp_values, max_size=5)


def draw_value(kind: str, size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size).map(lambda raw: kind.encode() + raw)


# Every type of the protocol and of its errata, with random bits.
raw_values = st.one_of(
    *(draw_value(kind, 1) for kind in "tbB"),
    *(draw_value(kind, 2) for kind in "su"),
    *(draw_value(kind, 4) for kind in "Iif"),
    *(draw_value(kind, 8) for kind in "lLdT"),
    draw_value("D", 5),
    draw_value("V", 0),
    *(st.binary(max_size=60).map(lambda raw, k=kind: k + U32.pack(len(raw)) + raw)  # type: ignore[misc]
      for kind in (b"S", b"x", b"A", b"F")),
)  # fmt: skip
unrouted_names = st.binary(max_size=20).filter(lambda name: name not in (b"CC", b"BCC"))
raw_names = unrouted_names | st.sampled_from(
    [b"x-problem", b"x-problem-code", b"x-delivery-count", b"x-acquired-count", b"x-death",
     b"traceparent", b"x-original-user-id"]
)  # fmt: skip
raw_tables = st.lists(st.tuples(raw_names, raw_values), max_size=6)


def encode_table(fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(bytes([len(name)]) + name + value for name, value in fields)


# --- encoding and decoding -----------------------------------------------------------------------


def encode_content_header(size: int = 0, **values: Any) -> bytes:
    """Encode a content header frame's payload with pamqp."""
    return header.ContentHeader(
        body_size=size, properties=commands.Basic.Properties(**values)
    ).marshal()


def build_content_header(flags: int, raw: bytes, size: int = 0) -> bytes:
    """Build a content header frame's payload from the property flags and the properties' bytes."""
    return struct.pack(">HHQH", 60, 0, size, flags) + raw


def read_table(table: bytes) -> WireProperties:
    """Read the properties of a message that has only this header table."""
    return read_content_header(build_content_header(0x2000, U32.pack(len(table)) + table))


def split_frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return each frame's type, channel and payload."""
    frames = []
    while data:
        kind, channel, size = FRAME_HEAD.unpack_from(data)
        assert data[7 + size] == FRAME_END
        frames.append((kind, channel, data[7 : 7 + size]))
        data = data[8 + size :]
    return frames


def decode_with_pamqp(data: bytes) -> list[tuple[int, Any]]:
    """Return each frame's channel and its object in pamqp."""
    frames = []
    while data:
        used, channel, each = frame.unmarshal(data)
        frames.append((channel, each))
        data = data[used:]
    return frames


def make_delivery(sent: WireProperties, content: bytes = b"{}") -> Delivery:
    return Delivery(1, "outplan.commands", "", "outplan_create", True, sent, content)


def make_rejected_copy(
    sent: WireProperties, added: Mapping[str, Any] | None = None, content: bytes = b"{}"
) -> Publication:
    return Publication(
        "",
        "outplan.rejected",
        content,
        added or {},
        original=make_delivery(sent, content),
        mandatory=True,
    )


def write_and_read_copy(
    sent: WireProperties,
    added: Mapping[str, Any] | None = None,
    frame_max: int = FRAME_MAX,
    user: str | None = "guest",
) -> WireProperties:
    """Write a rejected copy of a message, and read the copy's properties back."""
    _, (kind, _, payload), *_ = split_frames(
        write_publication(1, make_rejected_copy(sent, added), frame_max, user)
    )
    assert kind == HEADER
    return read_content_header(payload)


def get_raw_property(properties: WireProperties, name: str) -> bytes:
    return properties.raw[slice(*properties.spans[name])]
