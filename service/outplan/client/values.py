"""Turn the values that Python programs have into JSON values, and describe those without one.

Only values with one obvious meaning are taken. A number is taken if JSON can hold it exactly.
"""

import math
import operator
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

from outplan.contract.messages import ProblemError

# The fields that a timedelta may set, in whole milliseconds.
DURATIONS: Final = ("dial_timeout", "try_interval")
_MILLISECOND: Final = timedelta(milliseconds=1)
# A valid command nests two deep.
_MAX_DEPTH: Final = 32
# A valid command has about twenty. Without a limit, small lists that hold each other a few times
# would take for ever to write.
_MAX_VALUES: Final = 10_000
# Python refuses to write integers of more than 4300 digits.
_MAX_INTEGER_BITS: Final = 1_024
_MAX_POINTER_STEP: Final = 100


class _NoJsonValue(Exception):
    """Raised for a value without a form in JSON; the text says why."""


class _TooManyValues(Exception):
    """Raised at the first value too many, to stop reading."""


def read_text(value: object) -> str | None:
    """Return text and UUIDs as a plain str; None for anything else."""
    # By type, because a proxy's __class__ can name another one.
    if issubclass(type(value), UUID):
        with suppress(Exception):  # Any code can run in a subclass.
            return str.__str__(str(value))
        return None
    # str(value) would be Color.RED for an Enum of strings.
    return str.__str__(value) if issubclass(type(value), str) else None


def read_field(body: object, name: str) -> str | None:
    """Return a field that is text or a UUID; None if there is none, and "" for any other value."""
    try:
        value = body.get(name) if isinstance(body, Mapping) else ""
        return None if value is None else read_text(value) or ""
    except Exception:  # Any code can run in a foreign type.
        return ""


class JsonWriter:
    """Turn one command's body into JSON values; ``errors`` has an entry for each that has none.

    With ``strict``, lone surrogates, NaN and infinities are errors too.
    """

    def __init__(self, *, strict: bool) -> None:
        self.errors: list[ProblemError] = []
        self._strict = strict
        self._path: list[str] = []
        self._parents: list[int] = []
        self._count = 0

    def convert_body(self, body: object) -> dict[str, Any]:
        """Return the body's JSON values; None stands for what has none."""
        try:
            plain = self._convert(body)
        except _TooManyValues:
            self.errors = [ProblemError(pointer="", detail=f"has more than {_MAX_VALUES} values")]
            return {}
        if isinstance(plain, dict):
            return plain
        if not self.errors:
            self._add_error(f"should be a mapping of fields, not {_type_name(body)}")
        return {}

    def _convert(self, value: object) -> Any:
        try:
            return self._read(value)
        except _NoJsonValue as error:
            self._add_error(str(error))
        except _TooManyValues:
            raise
        except Exception as error:  # Any code can run in a foreign type.
            self._add_error(f"{_type_name(value)} cannot be read: it raises {_type_name(error)}")
        return None

    def _read(self, value: object) -> Any:
        self._count += 1
        if self._count > _MAX_VALUES:
            raise _TooManyValues
        if value is None or value is True or value is False:
            return value
        text = read_text(value)
        if text is not None:
            return self._check_text(text)
        if isinstance(value, Mapping | list | tuple | BaseModel):
            return self._read_container(value)
        if isinstance(value, timedelta):
            return self._read_duration(value)
        return self._read_number(value)

    def _read_container(
        self, value: "Mapping[Any, Any] | list[Any] | tuple[Any, ...] | BaseModel"
    ) -> Any:
        if id(value) in self._parents:
            raise _NoJsonValue("contains itself")
        if len(self._parents) >= _MAX_DEPTH:
            raise _NoJsonValue(f"is nested more than {_MAX_DEPTH} deep")
        self._parents.append(id(value))
        try:
            if isinstance(value, list | tuple):
                return [self._convert_member(str(n), item) for n, item in enumerate(value)]
            members = value.model_dump() if isinstance(value, BaseModel) else value
            return dict(self._read_member(key, members[key]) for key in members)
        finally:
            self._parents.pop()

    def _read_member(self, key: object, value: object) -> tuple[str, Any]:
        if not isinstance(key, str):
            raise _NoJsonValue(f"has a key that is not text but {_type_name(key)}")
        name = self._check_text(str.__str__(key))
        return name, self._convert_member(name, value)

    def _convert_member(self, name: str, value: object) -> Any:
        self._path.append(name)
        try:
            return self._convert(value)
        finally:
            self._path.pop()

    def _read_duration(self, value: timedelta) -> int:
        if len(self._path) != 1 or self._path[0] not in DURATIONS:
            raise _NoJsonValue(f"only {' and '.join(DURATIONS)} can be a timedelta")
        if value % _MILLISECOND != timedelta():
            raise _NoJsonValue("is not a whole number of milliseconds")
        return int(value // _MILLISECOND)

    def _read_number(self, value: object) -> int | float:
        # numpy registers its timedelta64 as Integral, but it has no __index__: its unit is unknown.
        if isinstance(value, Integral) or hasattr(type(value), "__index__"):
            return _check_integer(value)
        if not isinstance(value, float | Real | Decimal):
            raise _NoJsonValue(f"{_type_name(value)} has no form in JSON")
        number = float.__float__(value) if isinstance(value, float) else float(value)
        if not math.isfinite(number):
            if self._strict or not isinstance(value, float):
                raise _NoJsonValue(f"{number} has no form in JSON")
            return number
        if isinstance(value, float):
            return number
        if number != value:
            raise _NoJsonValue(f"{_type_name(value)} has more digits than a number in JSON")
        return int(number) if number.is_integer() else number

    def _check_text(self, text: str) -> str:
        if self._strict and not is_unicode(text):
            raise _NoJsonValue("holds text that is not valid Unicode")
        return text

    def _add_error(self, detail: str) -> None:
        self.errors.append(ProblemError(pointer=self._pointer(), detail=detail))

    def _pointer(self) -> str:
        """Point to the value, or to its parent if the key cannot be printed."""
        pointer = ""
        for step in self._path:
            if len(step) > _MAX_POINTER_STEP or not step.isprintable():
                break
            pointer += "/" + step.replace("~", "~0").replace("/", "~1")
        return pointer


def is_unicode(text: str) -> bool:
    """Return whether the text has a form in UTF-8: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_integer(value: Any) -> int:
    # int.__index__ ignores what a subclass overrides.
    number = int.__index__(value if isinstance(value, int) else operator.index(value))
    if number.bit_length() > _MAX_INTEGER_BITS:
        raise _NoJsonValue("is an integer of more than 300 digits")
    return number


def _type_name(value: object) -> str:
    name = type(value).__qualname__
    return name if name.isprintable() and len(name) <= _MAX_POINTER_STEP else "an object"
