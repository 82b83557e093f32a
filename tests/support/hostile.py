"""Properties and headers that RabbitMQ carries and most AMQP libraries cannot decode."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.support.raw_message import Properties, RawMessage, Table, encode_content_header

_NOT_UTF8: Final = b"\xff\xfe"
_MICROSECONDS: Final = 1_764_000_000_000_000
_DEEP_LIST: Final = b"".join(
    b"A" + (5 * levels).to_bytes(4, "big") for levels in reversed(range(2_000))
)


@dataclass(frozen=True, slots=True)
class Hostile:
    """Properties and headers to add to a message; ``key`` is added to its routing key."""

    properties: Properties = field(default_factory=dict)
    table: Table | None = None
    key: str = ""

    def apply(
        self, routing_key: str, body: bytes, properties: Mapping[str, bytes | int] | None = None
    ) -> RawMessage:
        """Make a message of these parts, which has these properties too."""
        mixed: Properties = {"delivery_mode": 2, **(properties or {}), **self.properties}
        header = encode_content_header(mixed, self.table, len(body))
        return RawMessage(routing_key + self.key, header, body)


def _in_headers(name: bytes, value: bytes) -> Hostile:
    return Hostile(table=[(name, value)])


# Texts that the broker neither reads nor replaces.
TEXTS: Final = ("content_type", "correlation_id", "message_id", "message_type", "app_id",
                "reply_to", "cluster_id")  # fmt: skip
HOSTILE: Final[dict[str, Hostile]] = {
    **{f"{name}-not-UTF-8": Hostile({name: _NOT_UTF8}) for name in TEXTS},
    "timestamp-in-microseconds": Hostile({"timestamp": _MICROSECONDS}),
    "timestamp-negative": Hostile({"timestamp": -1}),
    "timestamp-largest": Hostile({"timestamp": 2**63 - 1}),
    "header-name-not-UTF-8": _in_headers(_NOT_UTF8, b"V"),
    "header-text-not-UTF-8": _in_headers(b"text", b"S\0\0\0\2" + _NOT_UTF8),
    "header-timestamp-in-microseconds": _in_headers(b"at", b"T" + _MICROSECONDS.to_bytes(8, "big")),
    "header-table-with-a-name-not-UTF-8": _in_headers(b"in", b"F\0\0\0\4\2" + _NOT_UTF8 + b"V"),
    "header-decimal-of-255-digits": _in_headers(b"decimal", b"D\xff\xff\xff\xff\xff"),
    "header-deep-list": _in_headers(b"list", _DEEP_LIST),
    "routing-key-not-UTF-8": Hostile(key="\udcff\udcfe"),
}  # fmt: skip
