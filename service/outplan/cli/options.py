"""Options that come in groups: a dataclass a group, each field an option."""

from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, Final

import typer

from outplan.cli.place import AMQP_URL, PREFIX, AmqpUrl, Prefix

_LONGEST: Final = 255


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let the command line see the fields of the dataclasses that a command takes.

    Their fields are annotated as typer's options are, and have the option's default.
    """
    parameters = signature(command).parameters
    groups: dict[str, Any] = {
        name: p.annotation for name, p in parameters.items() if is_dataclass(p.annotation)
    }

    @wraps(command)
    def parsed(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    seen = [option for p in parameters.values() for option in _options(p)]
    parsed.__signature__ = Signature(seen)  # type: ignore[attr-defined] # what inspect reads first
    return parsed


def _options(parameter: Parameter) -> Iterator[Parameter]:
    if is_dataclass(parameter.annotation):
        yield from map(_option, fields(parameter.annotation))
    else:
        yield parameter.replace(kind=Parameter.KEYWORD_ONLY)


def _option(field: Field[Any]) -> Parameter:
    default = Parameter.empty if field.default is MISSING else field.default
    return Parameter(
        field.name, Parameter.KEYWORD_ONLY, default=default, annotation=field.type
    )  # fmt: skip


def short_text(text: str | None) -> str | None:
    """Refuse what AMQP has no room for. Nor is an empty text, of an unset variable, none at all."""
    try:
        fits = text is None or 0 < len(text.encode()) <= _LONGEST
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise typer.BadParameter("should be 1 to 255 bytes of UTF-8")
    return text


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the service is, and how long to wait for it."""

    amqp_url: AmqpUrl = AMQP_URL
    prefix: Prefix = PREFIX
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            help="How long a command may take, lost connections included.",
        ),
    ] = 30
