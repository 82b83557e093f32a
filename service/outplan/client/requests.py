"""Build commands and encode them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Required, Self, TypedDict, Unpack
from uuid import UUID

from outplan.client.errors import InvalidCommand, TooLarge, UnknownCommand
from outplan.client.ids import new_id
from outplan.contract import schemas
from outplan.contract.fields import (
    MAX_BODY_BYTES,
    MAX_MESSAGE_ID_BYTES,
    UUID_TARGET,
    derive_outplan_id,
)
from outplan.contract.messages import COMMANDS, Address, CommandName, Problem, ProblemError
from outplan.contract.slots import routing_key

_NO_UNICODE: Final = ProblemError(pointer="", detail="holds text that is not valid Unicode")


class OutplanSettings(TypedDict, total=False):
    """The fields that an update may change: times in milliseconds, ``source`` as a whole."""

    name: str
    detail: str
    source: Address | Mapping[str, str]
    dial_timeout: int
    try_interval: int
    max_try_count_0: int
    max_try_count_1: int
    max_try_count_2: int
    max_try_count_3: int
    max_try_count_4: int


class CreateFields(OutplanSettings, total=False):
    """The fields that a create may set. Without ``id``, the worker derives one from message_id."""

    id: str | UUID
    customer_id: Required[str | UUID]


class Preconditions(TypedDict, total=False):
    """The owner and the version that an outplan must have for the command to apply."""

    customer_id: str | UUID
    expected_version: int


class UpdateFields(OutplanSettings, Preconditions, total=False):
    """The fields of an update, apart from the outplan's id."""


@dataclass(frozen=True, slots=True)
class Request:
    """A command to send. Resent under the same ``message_id``, it is not applied twice.

    Raises ValueError for a message_id that is not 1 to 255 bytes of UTF-8, TypeError for one that
    is neither text nor a UUID.
    """

    name: CommandName
    body: Mapping[str, Any]
    message_id: str = field(default_factory=new_id)

    def __post_init__(self) -> None:
        require_message_id(self.message_id)

    @classmethod
    def create(
        cls, *, message_id: str | UUID | None = None, **fields: Unpack[CreateFields]
    ) -> Self:
        """Create an outplan."""
        return cls._of("outplan_create", fields, message_id)

    @classmethod
    def update(
        cls,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[UpdateFields],
    ) -> Self:
        """Change any subset of an outplan's fields."""
        return cls._of("outplan_update", {"id": outplan_id, **fields}, message_id)

    @classmethod
    def delete(
        cls,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[Preconditions],
    ) -> Self:
        """Delete an outplan, softly."""
        return cls._of("outplan_delete", {"id": outplan_id, **fields}, message_id)

    @classmethod
    def _of(
        cls, name: CommandName, fields: Mapping[str, Any], message_id: str | UUID | None
    ) -> Self:
        return cls(name, fields, require_message_id(message_id))

    @property
    def outplan_id(self) -> str | None:
        """The id of the command's outplan; None if the body has no readable one."""
        id_ = self.body.get("id")
        if id_ is None and self.name == "outplan_create":
            return derive_outplan_id(self.message_id)
        return str(id_).lower() if isinstance(id_, str | UUID) else None

    @property
    def routing_key(self) -> str:
        """The key to publish with: the name and the slot, which keeps the outplan's order.

        Only the name for what the worker rejects anyway: an unknown command, or no UUID as id.
        """
        id_ = self.outplan_id
        if self.name in COMMANDS and id_ is not None and UUID_TARGET.match(id_):
            return routing_key(self.name, id_)
        return self.name

    def encode(self, *, validate: bool = True) -> bytes:
        """Encode the body as JSON; raise the CommandRejected for what the worker would reject.

        Without ``validate``, leave validation to the worker, and raise TypeError for values that
        JSON cannot represent.
        """
        plain = {name: _plain(value) for name, value in self.body.items()}
        body = self._json(plain, strict=validate)
        if validate and (errors := self._violations(plain)):
            raise self._invalid(errors)
        try:
            content = body.encode(errors="strict" if validate else "surrogatepass")
        except UnicodeEncodeError:
            raise self._invalid((_NO_UNICODE,)) from None
        if validate and len(content) > MAX_BODY_BYTES:
            detail = f"the body has {len(content)} bytes; the limit is {MAX_BODY_BYTES}"
            raise TooLarge(Problem.of("too_large", detail, self.message_id))
        return content

    def _violations(self, plain: Mapping[str, object]) -> tuple[ProblemError, ...]:
        if self.name not in COMMANDS:
            detail = f"there is no command {self.name!r}"
            raise UnknownCommand(Problem.of("unknown_command", detail, self.message_id))
        return schemas.find_violations(self.name, plain)

    def _json(self, plain: Mapping[str, object], *, strict: bool) -> str:
        try:
            return json.dumps(
                plain, ensure_ascii=False, separators=(",", ":"), allow_nan=not strict
            )
        except (TypeError, ValueError):
            if not strict:
                raise
            raise self._invalid(tuple(_unencodable(plain))) from None

    def _invalid(self, errors: tuple[ProblemError, ...]) -> InvalidCommand:
        detail = "found before it was sent; errors lists the broken rules with JSON Pointers"
        return InvalidCommand(Problem.of("invalid_command", detail, self.message_id, errors=errors))


def require_message_id(message_id: str | UUID | None) -> str:
    """Return the message_id as text, or a new one. Raises ValueError and TypeError."""
    id_ = new_id() if message_id is None else message_id
    if isinstance(id_, UUID):
        id_ = str(id_)
    if not isinstance(id_, str):
        raise TypeError(f"a message_id is text or a UUID, not {id_!r}")
    if not 0 < len(id_.encode()) <= MAX_MESSAGE_ID_BYTES:
        raise ValueError(f"a message_id has 1 to {MAX_MESSAGE_ID_BYTES} bytes of UTF-8")
    return id_


def _plain(value: object) -> object:
    if isinstance(value, Address):
        return value.model_dump()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value) if isinstance(value, UUID) else value


def _unencodable(body: Mapping[str, object]) -> Iterator[ProblemError]:
    """Yield an error for each field that JSON cannot represent, which the schema cannot name."""
    for name, value in body.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            yield ProblemError(pointer=f"/{name}", detail=f"has no form in JSON: {error}")
