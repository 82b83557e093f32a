"""The contract's messages as types: documents, commands, events, replies, problems.

The JSON Schema files in ``schemas/`` are the source of truth. These models are their typed form;
a property test compares the two in both directions.
"""

from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationInfo,
    model_validator,
)

from outplan.contract.fields import (
    EARLIER_RULES,
    MAX_PROBLEM_ERRORS,
    NEVER,
    NIL_UUID,
    POINTER_PATTERN,
    PUBLISHER,
    SAFE_SIP_TARGET,
    TARGET_PATTERNS,
    UUID_TARGET,
    AddressType,
    Detail,
    DialTimeout,
    Integer,
    MessageId,
    Name,
    Printable,
    StoredDetail,
    StoredName,
    StoredUuid,
    Text,
    Timestamp,
    TryCount,
    TryInterval,
    Uuid,
    Version,
    refuse_null,
    refuse_unlike_label,
    refuse_unlike_prose,
)


class Model(BaseModel):
    """A message: immutable, and without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Address(Model):
    """One end of a call. ``type`` decides the form of ``target`` (contract, section 1).

    A command's address keeps to more rules, those of ``NewAddress``.
    """

    type: AddressType
    target: Text
    target_name: Text = ""
    name: Printable = ""
    detail: Text = ""

    @model_validator(mode="before")
    @classmethod
    def _lower_uuid_target(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind, target = value.get("type"), value.get("target")
        if isinstance(kind, str) and isinstance(target, str) and kind not in TARGET_PATTERNS:
            return {**value, "target": target.lower()}
        return value

    @model_validator(mode="after")
    def _target_fits_type(self) -> Self:
        pattern = TARGET_PATTERNS.get(self.type, UUID_TARGET)
        is_nil = pattern is UUID_TARGET and self.target == NIL_UUID
        if is_nil or not pattern.match(self.target):
            raise ValueError(f"target does not fit type {self.type}")
        return self


def _refuse_steering(address: Address, info: ValidationInfo) -> Address:
    """Refuse text that would steer what shows it or builds a SIP header from it."""
    for text in (address.target, address.target_name, address.name):
        refuse_unlike_label(text, info)
    refuse_unlike_prose(address.detail, info)
    is_sip = address.type == "sip" and info.context != EARLIER_RULES
    if is_sip and not SAFE_SIP_TARGET.match(address.target):
        raise ValueError('a sip target has no white space and none of < > "')
    return address


NewAddress = Annotated[Address, AfterValidator(_refuse_steering)]


def _stored_form(value: Any, info: ValidationInfo) -> Any:
    """Require all members and a lower-case UUID in JSON; Python code may use the defaults."""
    if info.mode == "json" and isinstance(value, dict):
        _require(value, tuple(Address.model_fields))
        kind, target = value["type"], value["target"]
        by_uuid = isinstance(kind, str) and kind not in TARGET_PATTERNS
        if by_uuid and isinstance(target, str) and target != target.lower():
            raise ValueError("the stored form of a UUID is in lower case")
    return value


def _require(value: dict[str, Any], fields: tuple[str, ...]) -> None:
    missing = [field for field in fields if field not in value]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")


class Outplan(Model):
    """The document: a customer's dialling strategy. Times are in milliseconds."""

    id: StoredUuid
    customer_id: StoredUuid
    name: StoredName
    detail: StoredDetail
    source: Annotated[Address, BeforeValidator(_stored_form)]
    dial_timeout: DialTimeout
    try_interval: TryInterval
    max_try_count_0: TryCount
    max_try_count_1: TryCount
    max_try_count_2: TryCount
    max_try_count_3: TryCount
    max_try_count_4: TryCount
    tm_create: Timestamp
    tm_update: Timestamp
    tm_delete: Timestamp

    @property
    def deleted(self) -> bool:
        return self.tm_delete != NEVER


class Create(Model):
    """``outplan_create``: the settable fields. Without ``id`` the worker derives one."""

    id: Annotated[Uuid | None, BeforeValidator(refuse_null)] = None
    customer_id: Uuid
    name: Name
    detail: Detail = ""
    source: NewAddress
    dial_timeout: DialTimeout = 30_000
    try_interval: TryInterval = 60_000
    max_try_count_0: TryCount = 0
    max_try_count_1: TryCount = 0
    max_try_count_2: TryCount = 0
    max_try_count_3: TryCount = 0
    max_try_count_4: TryCount = 0


class Update(Model):
    """``outplan_update``: any subset of the changeable fields, at least one."""

    CHANGEABLE: ClassVar[tuple[str, ...]] = (
        "name", "detail", "source", "dial_timeout", "try_interval", "max_try_count_0",
        "max_try_count_1", "max_try_count_2", "max_try_count_3", "max_try_count_4",
    )  # fmt: skip

    id: Uuid
    customer_id: Annotated[Uuid | None, BeforeValidator(refuse_null)] = None
    expected_version: Annotated[Version | None, BeforeValidator(refuse_null)] = None
    name: Annotated[Name | None, BeforeValidator(refuse_null)] = None
    detail: Annotated[Detail | None, BeforeValidator(refuse_null)] = None
    source: Annotated[NewAddress | None, BeforeValidator(refuse_null)] = None
    dial_timeout: Annotated[DialTimeout | None, BeforeValidator(refuse_null)] = None
    try_interval: Annotated[TryInterval | None, BeforeValidator(refuse_null)] = None
    max_try_count_0: Annotated[TryCount | None, BeforeValidator(refuse_null)] = None
    max_try_count_1: Annotated[TryCount | None, BeforeValidator(refuse_null)] = None
    max_try_count_2: Annotated[TryCount | None, BeforeValidator(refuse_null)] = None
    max_try_count_3: Annotated[TryCount | None, BeforeValidator(refuse_null)] = None
    max_try_count_4: Annotated[TryCount | None, BeforeValidator(refuse_null)] = None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.model_fields_set.isdisjoint(self.CHANGEABLE):
            raise ValueError(f"give at least one of {', '.join(self.CHANGEABLE)}")
        return self


class Delete(Model):
    """``outplan_delete``: a soft delete."""

    id: Uuid
    customer_id: Annotated[Uuid | None, BeforeValidator(refuse_null)] = None
    expected_version: Annotated[Version | None, BeforeValidator(refuse_null)] = None


Command = Create | Update | Delete
CommandName = Literal["outplan_create", "outplan_update", "outplan_delete"]
COMMANDS: Final[dict[str, type[Create] | type[Update] | type[Delete]]] = {
    "outplan_create": Create,
    "outplan_update": Update,
    "outplan_delete": Delete,
}

EventType = Literal["outplan_created", "outplan_updated", "outplan_deleted"]


class Event(Model):
    """The event of an accepted command, in VoIPBIN's envelope; ``id`` is the command's id."""

    id: MessageId
    type: EventType
    publisher: Literal["outplan-service"] = PUBLISHER
    data_type: Literal["application/json"] = "application/json"
    version: Version
    time: Timestamp
    changed: Annotated[tuple[Text, ...] | None, BeforeValidator(refuse_null)] = None
    data: Outplan

    @model_validator(mode="before")
    @classmethod
    def _whole_on_the_wire(cls, value: Any, info: ValidationInfo) -> Any:
        """Require the envelope's members in JSON; Python code may use the defaults."""
        if info.mode == "json" and isinstance(value, dict):
            _require(value, ("publisher", "data_type"))
        return value

    @model_validator(mode="after")
    def _tells_what_its_type_says(self) -> Self:
        if (self.version == 1) is not (self.type == "outplan_created"):
            raise ValueError("version 1 is outplan_created, and only that")
        if self.data.deleted is not (self.type == "outplan_deleted"):
            raise ValueError("tm_delete is set on outplan_deleted, and only there")
        if (self.changed is None) is (self.type == "outplan_updated"):
            raise ValueError("changed is on outplan_updated, and only there")
        if self.changed is not None:
            _refuse_other_than_changeable(self.changed)
        return self


def _refuse_other_than_changeable(changed: tuple[str, ...]) -> None:
    if not changed or len(set(changed)) < len(changed):
        raise ValueError("changed names each changed field once, and at least one")
    if not set(changed).issubset(Update.CHANGEABLE):
        raise ValueError(f"changed names only {', '.join(Update.CHANGEABLE)}")


class ProblemCode(NamedTuple):
    """The status and the title of one of the contract's problem codes."""

    status: int
    title: str


PROBLEM_CODES: Final[dict[str, ProblemCode]] = {
    "invalid_json": ProblemCode(400, "The body is not a JSON object in UTF-8"),
    "missing_message_id": ProblemCode(400, "The command has no message_id"),
    "unknown_command": ProblemCode(400, "There is no such command"),
    "invalid_command": ProblemCode(422, "The command breaks its schema"),
    "too_large": ProblemCode(413, "The body is too large"),
    "invalid_properties": ProblemCode(400, "The command has properties that are not UTF-8"),
    "not_found": ProblemCode(404, "There is no such outplan"),
    "already_exists": ProblemCode(409, "The id is or was in use"),
    "message_id_reused": ProblemCode(409, "The message_id was accepted with other content"),
    "version_conflict": ProblemCode(412, "The outplan has another version"),
    "delivery_limit": ProblemCode(500, "The broker gave up redelivering the command"),
}


# Only a command with an id is looked up in the store; these are found after that.
_NEED_MESSAGE_ID: Final = frozenset(
    {
        "invalid_properties",
        "not_found",
        "already_exists",
        "message_id_reused",
        "version_conflict",
    }
)


def _problem_type(code: str) -> str:
    return f"urn:outplan:problem:{code.replace('_', '-')}"


class ProblemError(Model):
    """One validation error: a JSON Pointer (RFC 6901) and what is wrong there."""

    pointer: Annotated[str, Strict(), StringConstraints(pattern=POINTER_PATTERN)]
    detail: Text


class Problem(Model):
    """An RFC 9457 problem: the reason of a rejection."""

    type: Text
    title: Text
    status: Integer
    detail: Text
    code: Text
    command_id: Text | None
    errors: Annotated[
        tuple[ProblemError, ...] | None,
        Field(max_length=MAX_PROBLEM_ERRORS),
        BeforeValidator(refuse_null),
    ] = None
    current_version: Annotated[Version | None, BeforeValidator(refuse_null)] = None

    @model_validator(mode="after")
    def _fits_its_code(self) -> Self:
        row = PROBLEM_CODES.get(self.code)
        if row is None or self.status != row.status or self.type != _problem_type(self.code):
            raise ValueError("code, type and status do not belong together")
        if self.command_id is None and self.code in _NEED_MESSAGE_ID:
            raise ValueError(f"{self.code} is not known of a command without message_id")
        return self

    @classmethod
    def of(cls, code: str, detail: str, command_id: str | None, **extra: Any) -> Self:
        """Build the problem for a code. Raises KeyError for a code that the contract lacks."""
        row = PROBLEM_CODES[code]
        return cls(
            type=_problem_type(code),
            title=row.title,
            status=row.status,
            detail=detail,
            code=code,
            command_id=command_id,
            **extra,
        )


class Reply(Model):
    """The outcome of a command, for a sender that set ``reply_to``."""

    command_id: Text | None
    status: Literal["accepted", "unchanged", "rejected"]
    duplicate: Annotated[bool, Strict()] = False
    version: Annotated[Version | None, BeforeValidator(refuse_null)] = None
    outplan: Annotated[Outplan | None, BeforeValidator(refuse_null)] = None
    problem: Annotated[Problem | None, BeforeValidator(refuse_null)] = None

    @model_validator(mode="before")
    @classmethod
    def _whole_on_the_wire(cls, value: Any, info: ValidationInfo) -> Any:
        """Require ``duplicate`` in JSON; Python code may use the default."""
        if info.mode == "json" and isinstance(value, dict):
            _require(value, ("duplicate",))
        return value

    @model_validator(mode="after")
    def _fits_its_status(self) -> Self:
        rejected = self.status == "rejected"
        if (self.problem is not None) is not rejected:
            raise ValueError("problem is there when rejected, and only then")
        if (self.version is None) is not rejected or (self.outplan is None) is not rejected:
            raise ValueError("version and outplan are there unless rejected")
        if self.command_id is None and not rejected:
            raise ValueError(f"a command without message_id is never {self.status}")
        return self
