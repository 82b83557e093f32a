"""What comes back, read leniently: times in three forms, and fields of later versions.

The seed's form, ``2022-04-28 01:50:23.414000``, is what the service writes; VoIPBIN's newest code
writes RFC 3339, and null for "never". All three become the seed's form here, so that a received
outplan is an ordinary one.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, PrivateAttr

from outplan.contract import messages
from outplan.contract.fields import NEVER, Timestamp, refuse_null


def _in_the_seeds_form(value: Any) -> Any:
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


def _moment(text: str) -> datetime | None:
    return None if text == NEVER else datetime.fromisoformat(text).replace(tzinfo=UTC)


AnyTime = Annotated[Timestamp, BeforeValidator(_in_the_seeds_form)]


class Outplan(messages.Outplan):
    """An outplan as received; the properties are its times as aware datetimes, or None."""

    model_config = ConfigDict(extra="ignore")

    tm_create: AnyTime
    tm_update: AnyTime
    tm_delete: AnyTime

    @property
    def created_at(self) -> datetime | None:
        return _moment(self.tm_create)

    @property
    def updated_at(self) -> datetime | None:
        return _moment(self.tm_update)

    @property
    def deleted_at(self) -> datetime | None:
        """None while it lives."""
        return _moment(self.tm_delete)


class Event(messages.Event):
    """An event as received: ``at`` is its time as an aware datetime, ``raw`` its bytes."""

    model_config = ConfigDict(extra="ignore")

    time: AnyTime
    data: Outplan
    _raw: bytes = PrivateAttr(b"")

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Read a message's body. ValueError for what is no event."""
        event = cls.model_validate_json(body)
        event._raw = body
        return event

    @property
    def raw(self) -> bytes:
        """As published, with whatever this version of the client does not know."""
        return self._raw

    @property
    def at(self) -> datetime | None:
        return _moment(self.time)


class Reply(messages.Reply):
    """A reply as received."""

    model_config = ConfigDict(extra="ignore")

    outplan: Annotated[Outplan | None, BeforeValidator(refuse_null)] = None
