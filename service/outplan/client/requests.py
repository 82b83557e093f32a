"""Build commands and encode them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Required, Self, TypedDict, Unpack
from uuid import UUID

from outplan.client.errors import InvalidCommand, TooLarge, UnknownCommand
from outplan.client.ids import new_id
from outplan.client.values import JsonWriter, is_unicode, read_field, read_text
from outplan.contract import schemas
from outplan.contract.fields import (
    MAX_BODY_BYTES,
    MAX_MESSAGE_ID_BYTES,
    MAX_PROBLEM_ERRORS,
    UUID_TARGET,
    derive_outplan_id,
)
from outplan.contract.messages import COMMANDS, Address, CommandName, Problem, ProblemError
from outplan.contract.slots import routing_key

_MAX_QUOTE: Final = 100


class OutplanSettings(TypedDict, total=False):
    """The fields that an update may change: times in milliseconds, ``source`` as a whole.

    Numbers and text may be of other types than these, for example numpy's or an Enum of strings.
    """

    name: str
    detail: str
    source: Address | Mapping[str, str | UUID]
    dial_timeout: int | timedelta
    try_interval: int | timedelta
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

    Raises InvalidCommand, with the pointer ``/message_id``, for a message_id that is neither a UUID
    nor text of 1 to 255 bytes in UTF-8, and UnknownCommand for a name that is not text. ``encode``
    raises what is wrong with the body.
    """

    name: CommandName
    body: Mapping[str, Any]
    message_id: str = field(default_factory=new_id)

    def __post_init__(self) -> None:
        # A frozen dataclass can set its fields in no other way.
        object.__setattr__(self, "message_id", require_message_id(self.message_id))
        object.__setattr__(self, "name", self._require_text_name())

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
        id_ = read_field(self.body, "id")
        if id_ is None and self.name == "outplan_create":
            return derive_outplan_id(self.message_id)
        return id_.lower() if id_ else None

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

        Without ``validate``, leave validation to the worker. A value that has no form in JSON is an
        InvalidCommand in both cases. No other exception is raised, whatever the body holds.
        """
        self._require_name(known=validate)
        writer = JsonWriter(strict=validate)
        plain = writer.convert_body(self.body)
        errors = writer.errors
        if validate:
            errors = [*errors, *_violations_apart_from(errors, self.name, plain)]
        if errors:
            raise _invalid(self.message_id, errors)
        body = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
        content = body.encode(errors="surrogatepass")
        if validate and len(content) > MAX_BODY_BYTES:
            detail = f"the body has {len(content)} bytes; the limit is {MAX_BODY_BYTES}"
            raise TooLarge(Problem.of("too_large", detail, self.message_id))
        return content

    def _require_text_name(self) -> str:
        name = read_text(self.name)
        if name is None:
            raise self._unknown_command("a command's name is text")
        return name

    def _require_name(self, *, known: bool) -> None:
        """Raise UnknownCommand for a name that AMQP cannot carry or, if ``known``, is unknown."""
        if not _fits_amqp(self.name) or (known and self.name not in COMMANDS):
            raise self._unknown_command(f"there is no command {self.name[:_MAX_QUOTE]!r}")

    def _unknown_command(self, detail: str) -> UnknownCommand:
        return UnknownCommand(Problem.of("unknown_command", detail, self.message_id))


def require_message_id(message_id: str | UUID | None) -> str:
    """Return the message_id as plain text, or a new one. Raises InvalidCommand."""
    if message_id is None:
        return new_id()
    id_ = read_text(message_id)
    if id_ is not None and _fits_amqp(id_):
        return id_
    wrong = f"{type(message_id).__name__} is not text or a UUID" if id_ is None else "is not that"
    detail = f"{wrong}: a message_id has 1 to {MAX_MESSAGE_ID_BYTES} bytes of UTF-8"
    raise _invalid(None, [ProblemError(pointer="/message_id", detail=detail)])


def _fits_amqp(text: str) -> bool:
    """Return whether the text fits a short string of AMQP, and is not empty."""
    return is_unicode(text) and 0 < len(text.encode()) <= MAX_MESSAGE_ID_BYTES


def _violations_apart_from(
    errors: Sequence[ProblemError], name: str, plain: Mapping[str, object]
) -> Iterator[ProblemError]:
    """Yield the schema's errors, except for those about values that have an error already."""
    for violation in schemas.find_violations(name, plain):
        place = violation.pointer
        if not any(f"{place}/".startswith(f"{error.pointer}/") for error in errors):
            yield violation


def _invalid(message_id: str | None, errors: Sequence[ProblemError]) -> InvalidCommand:
    detail = "found before it was sent; errors lists the broken rules with JSON Pointers"
    some = tuple(errors[:MAX_PROBLEM_ERRORS])
    return InvalidCommand(Problem.of("invalid_command", detail, message_id, errors=some))
