"""AMQP messages as values: what the broker delivers, and what is published. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Protocol

JSON: Final = "application/json"
DELIVERY_COUNT: Final = "x-delivery-count"
TRACE_HEADERS: Final = ("traceparent", "tracestate")


class Properties(Protocol):
    """A message's AMQP properties, by the names of the protocol's basic class.

    ``raw`` is all of them as they came on the wire.
    """

    raw: bytes
    message_id: str | None
    message_type: str | None
    correlation_id: str | None
    reply_to: str | None
    content_type: str | None
    content_encoding: str | None
    timestamp: int | None

    def header(self, name: str) -> Any:
        """The value of one header; None where it is absent or has no Python form."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as the broker handed it over; ``tag`` settles it."""

    tag: int
    queue: str
    exchange: str
    routing_key: str
    redelivered: bool
    properties: Properties
    body: bytes

    @property
    def command_id(self) -> str | None:
        """The message_id, where there is one and it is text."""
        id_ = self.properties.message_id
        return id_ if id_ and _is_text(id_) else None

    @property
    def command_name(self) -> str:
        return self.properties.message_type or self.routing_key

    @property
    def fingerprint(self) -> str:
        """What a redelivery has in common with it, and no other message.

        Not even the same command sent again: as far as its sender tells its sendings apart.
        """
        known = self.properties
        told = (known.message_id, self.command_name, known.correlation_id, known.reply_to,
                known.timestamp)  # fmt: skip
        return sha256(repr(told).encode("utf-8", "surrogateescape") + self.body).hexdigest()

    @property
    def delivery_count(self) -> int:
        """How often the broker has delivered it before; 0 for the first time."""
        count = self.properties.header(DELIVERY_COUNT) if self.redelivered else 0
        return count if isinstance(count, int) else 0


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to publish: JSON, persistent, from this service.

    ``original`` makes it a copy: that delivery's body and properties, with ``headers`` added.
    """

    exchange: str
    routing_key: str
    body: bytes
    headers: Mapping[str, Any]
    message_id: str | None = None
    type: str | None = None
    correlation_id: str | None = None
    timestamp: int | None = None
    original: Delivery | None = field(default=None)

    @property
    def best_effort(self) -> bool:
        """A reply: its queue may be gone, or full, and nobody else is to wait for that."""
        return not self.exchange and self.original is None

    @property
    def outplan_id(self) -> str | None:
        """Whose event it is; None where it is none."""
        found: str | None = self.headers.get("outplan_id") if self.exchange else None
        return found

    @property
    def mandatory(self) -> bool:
        """A rejected copy that no queue takes would be lost; an event or a reply may be."""
        return self.original is not None


def _is_text(value: str) -> bool:
    """Whether it is valid Unicode: bytes that were no UTF-8 are kept as surrogates."""
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)
