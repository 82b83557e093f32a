"""Draw AMQP content, and read and write whole messages."""

import struct
from collections.abc import Mapping
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

# --- what is drawn -----------------------------------------------------------------------------


def fits(limit: int) -> Any:
    return lambda text: len(text.encode()) <= limit


text = st.text(st.characters(exclude_categories=["Cs"]))
short_text = text.filter(fits(255))
# Hypothesis tries names that it finds in the code; what the broker reads has its own tests.
BROKERS: Final = {"x-delivery-count", "x-acquired-count", "CC", "BCC"}
names = text.filter(fits(128)).filter(lambda name: name not in BROKERS)
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
library_values = st.recursive(
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
library_tables = st.dictionaries(names, library_values, max_size=5)


def sized(kind: str, size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size).map(lambda raw: kind.encode() + raw)


# Whatever the protocol and its errata know, with any bits at all.
raw_values = st.one_of(
    *(sized(kind, 1) for kind in "tbB"),
    *(sized(kind, 2) for kind in "su"),
    *(sized(kind, 4) for kind in "Iif"),
    *(sized(kind, 8) for kind in "lLdT"),
    sized("D", 5),
    sized("V", 0),
    *(st.binary(max_size=60).map(lambda raw, k=kind: k + U32.pack(len(raw)) + raw)  # type: ignore[misc]
      for kind in (b"S", b"x", b"A", b"F")),
)  # fmt: skip
unread_names = st.binary(max_size=20).filter(lambda name: name not in (b"CC", b"BCC"))
raw_names = unread_names | st.sampled_from(
    [b"x-problem", b"x-problem-code", b"x-delivery-count", b"x-acquired-count", b"x-death",
     b"traceparent", b"x-original-user-id"]
)  # fmt: skip
raw_tables = st.lists(st.tuples(raw_names, raw_values), max_size=6)


def table_bytes(fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(bytes([len(name)]) + name + value for name, value in fields)


# --- reading and writing of whole messages -------------------------------------------------------


def content_header(size: int = 0, **values: Any) -> bytes:
    """Encode a content header frame's payload with the driver's codec."""
    return header.ContentHeader(
        body_size=size, properties=commands.Basic.Properties(**values)
    ).marshal()


def header_of(flags: int, raw: bytes, size: int = 0) -> bytes:
    return struct.pack(">HHQH", 60, 0, size, flags) + raw


def with_table(table: bytes) -> WireProperties:
    return read_content_header(header_of(0x2000, U32.pack(len(table)) + table))


def split(data: bytes) -> list[tuple[int, int, bytes]]:
    """Frames as kind, channel and payload."""
    found = []
    while data:
        kind, channel, size = FRAME_HEAD.unpack_from(data)
        assert data[7 + size] == FRAME_END
        found.append((kind, channel, data[7 : 7 + size]))
        data = data[8 + size :]
    return found


def library_frames(data: bytes) -> list[tuple[int, Any]]:
    found = []
    while data:
        used, channel, each = frame.unmarshal(data)
        found.append((channel, each))
        data = data[used:]
    return found


def delivered(sent: WireProperties, content: bytes = b"{}") -> Delivery:
    return Delivery(1, "outplan.commands", "", "outplan_create", True, sent, content)


def rejected_copy(
    sent: WireProperties, added: Mapping[str, Any] | None = None, content: bytes = b"{}"
) -> Publication:
    return Publication(
        "",
        "outplan.rejected",
        content,
        added or {},
        original=delivered(sent, content),
        mandatory=True,
    )


def copied(
    sent: WireProperties,
    added: Mapping[str, Any] | None = None,
    frame_max: int = FRAME_MAX,
    user: str | None = "guest",
) -> WireProperties:
    _, (kind, _, payload), *_ = split(
        write_publication(1, rejected_copy(sent, added), frame_max, user)
    )
    assert kind == HEADER
    return read_content_header(payload)


def raw_property(found: WireProperties, name: str) -> bytes:
    return found.raw[slice(*found.spans[name])]
