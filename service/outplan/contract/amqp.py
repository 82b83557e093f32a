"""AMQP messages as values: deliveries and publications. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Protocol

from outplan.contract.slots import split_routing_key

JSON: Final = "application/json"
DELIVERY_COUNT: Final = "x-delivery-count"
TRACE_HEADERS: Final = ("traceparent", "tracestate")


class Properties(Protocol):
    """A message's AMQP properties, by the names of the protocol's basic class.

    ``raw`` holds all of them as they were on the wire. Text that is not UTF-8 has surrogate
    escapes. ``timestamp`` is in seconds.
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
        """Return the value of a header; None if it is absent or has no Python form."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as the broker delivered it; ``tag`` is the delivery tag to ack."""

    tag: int
    queue: str
    exchange: str
    routing_key: str
    redelivered: bool
    properties: Properties
    body: bytes

    @property
    def command_id(self) -> str | None:
        """The message_id, if there is one and it is UTF-8."""
        return _text_or_none(self.properties.message_id) or None

    @property
    def correlation_id(self) -> str | None:
        """The correlation_id, if it is UTF-8."""
        return _text_or_none(self.properties.correlation_id)

    @property
    def reply_to(self) -> str | None:
        """The queue to reply to, if it is UTF-8."""
        return _text_or_none(self.properties.reply_to)

    @property
    def command_name(self) -> str:
        """The AMQP type, or else the routing key without its slot."""
        return self.properties.message_type or split_routing_key(self.routing_key)[0]

    @property
    def fingerprint(self) -> str:
        """A SHA-256 in hex that only a redelivery of this message shares.

        A resend differs as long as its sender gives it a correlation_id or a timestamp of its own.
        """
        known = self.properties
        identity = (known.message_id, self.command_name, known.correlation_id, known.reply_to,
                    known.timestamp)  # fmt: skip
        return sha256(repr(identity).encode("utf-8", "surrogateescape") + self.body).hexdigest()

    @property
    def delivery_count(self) -> int:
        """The number of times that the broker has delivered the message before."""
        count = self.properties.header(DELIVERY_COUNT) if self.redelivered else 0
        return count if isinstance(count, int) else 0


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to publish: JSON, persistent, from this service.

    ``original`` makes it a copy: that delivery's body and properties, with ``headers`` added.
    ``timestamp`` is in seconds. ``outplan_id`` is set for an event, which waits for the confirms of
    the outplan's earlier events. ``best_effort`` is for a reply, whose queue may be gone or full.
    A ``mandatory`` message is an error if no queue takes it.
    """

    exchange: str
    routing_key: str
    body: bytes
    headers: Mapping[str, Any]
    message_id: str | None = None
    type: str | None = None
    correlation_id: str | None = None
    timestamp: int | None = None
    original: Delivery | None = None
    outplan_id: str | None = None
    best_effort: bool = False
    mandatory: bool = False


def escape_surrogates(text: str) -> str:
    """Write the bytes that were not UTF-8, kept as surrogates, as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _text_or_none(value: str | None) -> str | None:
    """Return a text that was UTF-8 on the wire; in others, bytes are kept as surrogates."""
    if value is None or value.isascii():
        return value
    return None if any("\ud800" <= char <= "\udfff" for char in value) else value
