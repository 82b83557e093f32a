"""Write AMQP messages byte by byte: most clients refuse to write what the fuzzer sends."""

from dataclasses import dataclass

from outplan.rabbitmq.frames import PROPERTIES
from tests.support.wire import encode_table

Properties = dict[str, bytes | int]
Table = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message as it stands on the wire; ``header`` is a content header frame's payload."""

    routing_key: str
    header: bytes
    body: bytes


def encode_content_header(properties: Properties, table: Table | None, size: int) -> bytes:
    """Encode a content header frame's payload; ``size`` is the body's length."""
    flags, parts = 0, []
    for flag, name, kind in PROPERTIES:
        if kind == "table" and table is not None:
            flags |= flag
            data = encode_table(table)
            parts.append(len(data).to_bytes(4, "big") + data)
        elif (value := properties.get(name)) is not None:
            flags |= flag
            parts.append(_encode_property(kind, value))
    head = (60).to_bytes(2, "big") + bytes(2) + size.to_bytes(8, "big") + flags.to_bytes(2, "big")
    return head + b"".join(parts)


def _encode_property(kind: str, value: bytes | int) -> bytes:
    if isinstance(value, bytes):
        return bytes([len(value)]) + value
    return value.to_bytes(1, "big") if kind == "octet" else value.to_bytes(8, "big", signed=True)
