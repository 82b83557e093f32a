"""The contract's field types: patterns, limits, and their pydantic form."""

import re
from typing import Annotated, Any, Final, Literal
from uuid import UUID, uuid5

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    Strict,
    StringConstraints,
    ValidationInfo,
)

NIL_UUID: Final = "00000000-0000-0000-0000-000000000000"
NEVER: Final = "9999-01-01 00:00:00.000000"
PUBLISHER: Final = "outplan-service"
MAX_BODY_BYTES: Final = 262_144
MAX_MESSAGE_ID_BYTES: Final = 255
MAX_PROBLEM_ERRORS: Final = 32

UUID_PATTERN: Final = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
STORED_UUID_PATTERN: Final = UUID_PATTERN.replace("A-F", "")
TIMESTAMP_PATTERN: Final = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r" ([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}$"
)
# Stored names from before the rules below may have the characters that those refuse.
NO_CONTROL_PATTERN: Final = r"^[^\x00-\x1f\x7f-\x9f]*$"
# What ends a line, or reorders the text around it on a screen, steers whatever reads the text.
_SEPARATORS: Final = "\u2028\u2029"
_BIDIRECTIONAL: Final = "\u202a-\u202e\u2066-\u2069"
_SPACES: Final = " \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
LABEL_PATTERN: Final = rf"^[^\x00-\x1f\x7f-\x9f{_SEPARATORS}{_BIDIRECTIONAL}]*$"
PROSE_PATTERN: Final = rf"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f{_SEPARATORS}]*$"
BLANK_PATTERN: Final = f"^[{_SPACES}]+$"
# The definition of HTML's <input type=email>, which is the most widely shared one.
EMAIL_PATTERN: Final = (
    r"^[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
    r"(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$"
)
# RFC 5321 allows 64 characters before the @ and 255 after it.
MAX_EMAIL: Final = 320
E164_PATTERN: Final = r"^\+[0-9]{7,15}$"
SIP_PATTERN: Final = r"^[^@]+@[^@]+$"
# Without what would end the address in a SIP header.
SAFE_SIP_PATTERN: Final = f'^[^@{_SPACES}<>"]+@[^@{_SPACES}<>"]+$'
POINTER_PATTERN: Final = r"^(/([^~/]|~[01])*)*$"

_OUTPLAN_IDS: Final = UUID("6f7c2f0e-3c1d-5b8e-9a55-0d1c4a1f6b7e")


def derive_outplan_id(message_id: str) -> str:
    """Return the id of the outplan that a create without ``id`` makes: a UUIDv5 of message_id."""
    return str(uuid5(_OUTPLAN_IDS, message_id))


def _refuse_nil(value: str) -> str:
    if value == NIL_UUID:
        raise ValueError("the nil UUID names nothing")
    return value


def refuse_null(value: Any) -> Any:
    """Refuse null for a field that may be left out."""
    if value is None:
        raise ValueError("null is not a value here; leave the field out")
    return value


def _whole_number(value: Any) -> Any:
    """Read 30000.0 as an integer, as JSON Schema does."""
    return int(value) if type(value) is float and value.is_integer() else value


Uuid = Annotated[
    str,
    Strict(),
    StringConstraints(pattern=UUID_PATTERN, to_lower=True),
    AfterValidator(_refuse_nil),
]
StoredUuid = Annotated[
    str, Strict(), StringConstraints(pattern=STORED_UUID_PATTERN), AfterValidator(_refuse_nil)
]
Integer = Annotated[int, Strict(), BeforeValidator(_whole_number)]
Text = Annotated[str, Strict()]
Printable = Annotated[str, Strict(), StringConstraints(pattern=NO_CONTROL_PATTERN)]
# The validation context that skips the rules which came after documents were stored without them.
EARLIER_RULES: Final = "earlier rules"
_LABEL: Final = re.compile(LABEL_PATTERN.replace("$", r"\Z"))
_PROSE: Final = re.compile(PROSE_PATTERN.replace("$", r"\Z"))
_BLANK: Final = re.compile(BLANK_PATTERN.replace("$", r"\Z"))


def refuse_unlike_label(value: str, info: ValidationInfo) -> str:
    """Refuse text that is not on one line, reorders what is around it, or is only white space."""
    if info.context != EARLIER_RULES and (not _LABEL.match(value) or _BLANK.match(value)):
        raise ValueError("one line without control characters, and not only white space")
    return value


def refuse_unlike_prose(value: str, info: ValidationInfo) -> str:
    """Refuse text with control characters other than tabs and line breaks."""
    if info.context != EARLIER_RULES and not _PROSE.match(value):
        raise ValueError("no control characters other than tabs and line breaks")
    return value


Timestamp = Annotated[str, Strict(), StringConstraints(pattern=TIMESTAMP_PATTERN)]
StoredName = Annotated[
    str, Strict(), StringConstraints(min_length=1, max_length=255, pattern=NO_CONTROL_PATTERN)
]
Name = Annotated[StoredName, AfterValidator(refuse_unlike_label)]
StoredDetail = Annotated[str, Strict(), StringConstraints(max_length=65_535)]
Detail = Annotated[StoredDetail, AfterValidator(refuse_unlike_prose)]
DialTimeout = Annotated[Integer, Field(ge=1_000, le=600_000)]
TryCount = Annotated[Integer, Field(ge=0, le=1_000)]
Version = Annotated[Integer, Field(ge=1, le=9_007_199_254_740_991)]
MessageId = Annotated[str, Strict(), StringConstraints(min_length=1, max_length=255)]


def _zero_or_a_second(value: int) -> int:
    if 0 < value < 1_000:
        raise ValueError("0 (retry at once) or at least 1000 ms")
    return value


TryInterval = Annotated[Integer, Field(ge=0, le=2_147_483_647), AfterValidator(_zero_or_a_second)]
AddressType = Literal[
    "tel", "whatsapp", "email", "sip", "agent", "ai", "ai_team", "conference", "webchat",
    "web_session", "extension", "line",
]  # fmt: skip

TARGET_PATTERNS: Final[dict[str, re.Pattern[str]]] = {
    "tel": re.compile(E164_PATTERN.replace("$", r"\Z")),
    "whatsapp": re.compile(E164_PATTERN.replace("$", r"\Z")),
    "email": re.compile(rf"(?=.{{1,{MAX_EMAIL}}}\Z)" + EMAIL_PATTERN[:-1] + r"\Z"),
    "sip": re.compile(SIP_PATTERN.replace("$", r"\Z")),
    "extension": re.compile(r"(?s)^.{1,255}\Z"),
    "line": re.compile(r"(?s)^.{1,255}\Z"),
}
SAFE_SIP_TARGET: Final = re.compile(SAFE_SIP_PATTERN.replace("$", r"\Z"))
UUID_TARGET: Final = re.compile(UUID_PATTERN.replace("$", r"\Z"))
