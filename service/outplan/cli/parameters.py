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
_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_MIN_TIMEOUT: Final = 0.1
_MAX_SECONDS: Final = 10_000_000
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


def check_url(ctx: typer.Context, param: typer.CallbackParam, url: str | None) -> str | None:
    """Require an AMQP URL; strip it."""
    from outplan.urls import check_amqp_url  # --help and --version start faster without

    return _check(check_amqp_url, _set_text(ctx, param, url))


def check_mongo(ctx: typer.Context, param: typer.CallbackParam, url: str | None) -> str | None:
    """Require a MongoDB URL; strip it."""
    from outplan.urls import check_mongo_url  # as above

    return _check(check_mongo_url, _set_text(ctx, param, url))


def check_prefix(ctx: typer.Context, param: typer.CallbackParam, prefix: str | None) -> str | None:
    """Require a name that RabbitMQ and MongoDB take; strip it."""
    from outplan.urls import PREFIX_PATTERN  # as above

    prefix = _set_text(ctx, param, prefix)
    if prefix is not None and not re.fullmatch(PREFIX_PATTERN, prefix):
        raise typer.BadParameter("should be 1 to 100 letters, digits, dots, dashes or underscores")
    return prefix


def _set_text(ctx: typer.Context, param: typer.CallbackParam, text: str | None) -> str | None:
    """Strip a text; white space in an environment variable is an unset variable."""
    if text is None or text.strip():
        return text and text.strip()
    source = ctx.get_parameter_source(param.name or "")
    if source is not None and source.name == "ENVIRONMENT":
        return None if param.default is None else str(param.default)
    return ""


def _check(check: Callable[[str], str], url: str | None) -> str | None:
    try:
        return None if url is None else check(url)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


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
    seconds = _parse_units(text)
    if seconds is None:
        raise typer.BadParameter(f"{text!r} is not an age such as 45s, 30m, 12h, 1d12h or 2w")
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is too long an age") from None


def parse_milliseconds(text: str) -> int:
    """Read a number of milliseconds, or a duration such as 30s, 5m or 1h."""
    if re.fullmatch(r"-?\d{1,18}", text):
        return int(text)
    seconds = _parse_units(text)
    milliseconds = None
    if seconds is not None and seconds <= _MAX_SECONDS:
        milliseconds = round(seconds * 1_000, 6)
    if milliseconds is None or milliseconds != int(milliseconds):
        raise typer.BadParameter(
            f"{text!r} is neither a duration such as 30s, 5m or 1h nor a number of milliseconds"
        )
    return int(milliseconds)


def parse_seconds(text: Any) -> float:
    """Read a number of seconds, or a duration such as 500ms, 30s, 5m or 1h."""
    text = str(text)
    number = re.fullmatch(r"\d{1,9}(\.\d+)?", text)
    seconds = float(text) if number else _parse_units(text)
    if seconds is None or seconds > _MAX_SECONDS:
        raise typer.BadParameter(
            f"{text!r} is neither a duration such as 30s, 5m or 1h nor a number of seconds"
        )
    return seconds


def parse_timeout(text: Any) -> float:
    """Read as ``parse_seconds``, at least 0.1 s."""
    if (seconds := parse_seconds(text)) < _MIN_TIMEOUT:
        raise typer.BadParameter(f"should be at least {_MIN_TIMEOUT} s")
    return seconds


def _parse_units(text: str) -> float | None:
    """Return the seconds of ``1h30m``; None for any other form."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhdw])", text)
    if not parts or "".join(map("".join, parts)) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


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
