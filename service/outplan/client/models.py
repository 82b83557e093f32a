"""Read replies and events leniently: times in three forms, and fields of later versions.

The service writes times as ``2022-04-28 01:50:23.414000``. VoIPBIN's newest code writes RFC 3339,
and null for "never". These models turn all three into the service's form.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, PrivateAttr

from outplan.contract import messages
from outplan.contract.fields import NEVER, Timestamp, refuse_null


def _normalize_time(value: Any) -> Any:
    if value is None:
        return NEVER
    if not isinstance(value, str):
        return value
    moment = datetime.fromisoformat(value)
    try:
        moment = moment.astimezone(UTC) if moment.tzinfo else moment
    except OverflowError as error:
        raise ValueError(f"{value} is out of range") from error
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds")


def _parse_time(text: str) -> datetime | None:
    return None if text == NEVER else datetime.fromisoformat(text).replace(tzinfo=UTC)


AnyTime = Annotated[Timestamp, BeforeValidator(_normalize_time)]


class Outplan(messages.Outplan):
    """An outplan as received. ``created_at`` and the like are aware datetimes, or None."""

    model_config = ConfigDict(extra="ignore")

    tm_create: AnyTime
    tm_update: AnyTime
    tm_delete: AnyTime

    @property
    def created_at(self) -> datetime | None:
        return _parse_time(self.tm_create)

    @property
    def updated_at(self) -> datetime | None:
        return _parse_time(self.tm_update)

    @property
    def deleted_at(self) -> datetime | None:
        """None while the outplan exists."""
        return _parse_time(self.tm_delete)


class Event(messages.Event):
    """An event as received: ``at`` is its time as an aware datetime, ``raw`` its bytes."""

    model_config = ConfigDict(extra="ignore")

    time: AnyTime
    data: Outplan
    _raw: bytes = PrivateAttr(b"")

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Read a message's body. Raises ValueError for what is no event."""
        event = cls.model_validate_json(body)
        event._raw = body
        return event

    @property
    def raw(self) -> bytes:
        """The bytes as published, with fields that this version of the client does not know."""
        return self._raw

    @property
    def at(self) -> datetime | None:
        return _parse_time(self.time)


class Reply(messages.Reply):
    """A reply as received."""

    model_config = ConfigDict(extra="ignore")

    outplan: Annotated[Outplan | None, BeforeValidator(refuse_null)] = None
