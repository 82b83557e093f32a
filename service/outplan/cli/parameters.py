"""Build options from dataclasses, and check the values that people give."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import timedelta
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, Final

import typer

_MAX_BYTES: Final = 255
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_BROKER_REASONS: Final = ("expired", "maxlen", "rejected")


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Make every field of the dataclasses that a command takes an option of the command."""
    parameters = signature(command).parameters
    groups: dict[str, Any] = {
        name: p.annotation for name, p in parameters.items() if is_dataclass(p.annotation)
    }

    @wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    options = [option for p in parameters.values() for option in _list_options(p)]
    run.__signature__ = Signature(options)  # type: ignore[attr-defined] # typer reads it
    return run


def _list_options(parameter: Parameter) -> Iterator[Parameter]:
    if is_dataclass(parameter.annotation):
        yield from map(_build_option, fields(parameter.annotation))
    else:
        yield parameter.replace(kind=Parameter.KEYWORD_ONLY)


def _build_option(field: Field[Any]) -> Parameter:
    default = Parameter.empty if field.default is MISSING else field.default
    kind = Parameter.KEYWORD_ONLY
    return Parameter(field.name, kind, default=default, annotation=field.type)


def check_short_text(text: str | None) -> str | None:
    """Require 1 to 255 bytes; an empty string, as of an unset shell variable, is an error."""
    try:
        fits = text is None or 0 < len(text.encode()) <= _MAX_BYTES
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise typer.BadParameter("should be 1 to 255 bytes of UTF-8")
    return text


def check_url(url: str) -> str:
    """Require an AMQP URL."""
    from outplan.urls import check_amqp_url  # --help and --version start faster without

    try:
        return check_amqp_url(url)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def check_prefix(prefix: str) -> str:
    """Require a name that RabbitMQ and MongoDB take."""
    from outplan.urls import PREFIX_PATTERN  # --help and --version start faster without

    if not re.fullmatch(PREFIX_PATTERN, prefix):
        raise typer.BadParameter("should be 1 to 100 letters, digits, dots, dashes or underscores")
    return prefix


def check_printable(label: str) -> str:
    """Refuse control characters."""
    if not label.isprintable():
        raise typer.BadParameter("should be printable text")
    return label


def parse_address(text: str) -> Any:
    """Read an address: ``type:target``, or a JSON object."""
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise typer.BadParameter(f"is not JSON: {error}") from None
        except RecursionError:
            raise typer.BadParameter("is not JSON: nested too deeply") from None
    kind, colon, target = text.partition(":")
    if not colon:
        raise typer.BadParameter(f"{text!r} is not type:target, such as tel:+15559876543")
    return {"type": kind, "target": target}


def parse_age(text: str) -> timedelta:
    """Read an age such as 30m or 1d12h."""
    parts = re.findall(r"(\d+)([smhdw])", text)
    if not parts or "".join(map("".join, parts)) != text:
        raise typer.BadParameter(f"{text!r} is not an age such as 45s, 30m, 12h, 1d12h or 2w")
    try:
        return sum((timedelta(**{_UNITS[u]: int(n)}) for n, u in parts), timedelta())
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is too long an age") from None


def list_codes() -> list[str]:
    """List the codes of rejected commands, the broker's reasons included."""
    from outplan.contract.messages import PROBLEM_CODES  # --help starts faster without

    return [*PROBLEM_CODES, *_BROKER_REASONS]


def check_codes(codes: list[str]) -> list[str]:
    """Refuse a code that no rejected command has."""
    known = list_codes()
    for code in codes:
        if code not in known:
            raise typer.BadParameter(f"{code!r} is none of {', '.join(known)}")
    return codes
