"""A command as a test publishes it: anything that AMQP carries, valid or not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, cast
from uuid import UUID

from pamqp.commands import Basic
from pamqp.header import ContentHeader

from outplan.client.requests import Request, require_message_id
from outplan.contract.messages import CommandName

_PERSISTENT: Final = 2


@dataclass(frozen=True, slots=True)
class RawCommand:
    """A body with its properties, among which ``type`` is the command's name."""

    routing_key: str
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
        """Make a command.

        Raises TypeError for a wrong body, InvalidCommand for a wrong message_id, and ValueError for
        anything else that AMQP does not carry.

        A mapping gets the client's routing key, with the outplan's slot; bytes get the bare name.
        """
        id_, content = require_message_id(message_id), _encode(body)
        properties = Basic.Properties(
            delivery_mode=_PERSISTENT,
            message_id=id_,
            message_type=name,
            headers=dict(headers or {}),
        )
        # The driver would fail on it later, and that would look like a lost connection.
        try:
            ContentHeader(0, 0, properties).marshal()
        except (TypeError, ValueError) as error:
            raise ValueError(f"AMQP does not carry its name or headers: {error}") from error
        known = Request(cast(CommandName, name), body, id_) if isinstance(body, Mapping) else None
        return cls(known.routing_key if known else name, content, properties)

    @property
    def message_id(self) -> str:
        return self.properties.message_id or ""


def _encode(body: Mapping[str, Any] | bytes) -> bytes:
    if isinstance(body, bytes):
        return body
    # json.dumps would take a str and quote it.
    if not isinstance(body, Mapping):
        raise TypeError(f"a body is a mapping or bytes, not {type(body).__name__}")
    return json.dumps(dict(body), default=str).encode()
