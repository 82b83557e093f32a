"""A command as a test sends it: anything that AMQP carries, right or wrong."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self
from uuid import UUID

from pamqp.commands import Basic
from pamqp.header import ContentHeader

from outplan.client.requests import usable_id

_PERSISTENT: Final = 2


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is published under a name, which is the routing key and the property ``type`` too."""

    name: str
    body: bytes
    properties: Basic.Properties

    @classmethod
    def of(
        cls,
        name: str,
        body: Mapping[str, Any] | bytes,
        message_id: str | UUID | None,
        headers: Mapping[str, Any] | None,
    ) -> Self:
        """Raises TypeError for a body that is neither, ValueError for what AMQP does not carry."""
        properties = Basic.Properties(
            delivery_mode=_PERSISTENT,
            message_id=usable_id(message_id),
            message_type=name,
            headers=dict(headers or {}),
        )
        # Found by the broker or the driver it would look like a lost connection.
        try:
            ContentHeader(0, 0, properties).marshal()
        except (TypeError, ValueError) as error:
            raise ValueError(f"AMQP does not carry its name or headers: {error}") from error
        return cls(name, _encoded(body), properties)

    @property
    def message_id(self) -> str:
        return self.properties.message_id or ""


def _encoded(body: Mapping[str, Any] | bytes) -> bytes:
    if isinstance(body, bytes):
        return body
    # Of text, JSON would make text in quotation marks.
    if not isinstance(body, Mapping):
        raise TypeError(f"a body is a mapping or bytes, not {type(body).__name__}")
    return json.dumps(dict(body), default=str).encode()
