"""``outplan publish``: one command, and what became of it."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outplan.cli.options import Connection, grouped, short_text

if TYPE_CHECKING:
    from outplan.contract.messages import CommandName

_FIELDS = "Fields"
_SENDING = "Sending"

app = typer.Typer(no_args_is_help=True, help="Send one command, and say what became of it.")


def _address(text: str) -> Any:
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


def _field(help_: str, **how: Any) -> Any:
    return typer.Option(rich_help_panel=_FIELDS, show_default=False, help=help_, **how)


def _sending(help_: str, **how: Any) -> Any:
    return typer.Option(rich_help_panel=_SENDING, help=help_, **how)


def _tries(index: int) -> Any:
    return _field(f"Most attempts for destination {index}, 0 to 1000; 0: it is not dialled.")


@dataclass(frozen=True, kw_only=True)
class Ownership:
    """Whose an outplan is."""

    customer_id: Annotated[str | None, _field("Its customer's id.")] = None


@dataclass(frozen=True, kw_only=True)
class Conditions(Ownership):
    """On what terms an outplan may be changed."""

    expected_version: Annotated[
        int | None, _field("Refuse unless this is the outplan's version.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What creates and updates may set."""

    name: Annotated[str | None, _field("1 to 255 characters.")] = None
    detail: Annotated[str | None, _field("What it is for, in words.")] = None
    source: Annotated[
        Any,
        _field(
            "The caller id: tel:+15559876543, sip:user@host, …, or an address as JSON.",
            parser=_address,
            metavar="TYPE:TARGET",
        ),
    ] = None
    dial_timeout: Annotated[
        int | None,
        _field("How long to let it ring: 1000 to 600000 milliseconds.", metavar="MS"),
    ] = None
    try_interval: Annotated[
        int | None,
        _field(
            "How long to wait between attempts: milliseconds, at least 1000, or 0 for not at all.",
            metavar="MS",
        ),
    ] = None
    max_try_count_0: Annotated[int | None, _tries(0)] = None
    max_try_count_1: Annotated[int | None, _tries(1)] = None
    max_try_count_2: Annotated[int | None, _tries(2)] = None
    max_try_count_3: Annotated[int | None, _tries(3)] = None
    max_try_count_4: Annotated[int | None, _tries(4)] = None


@dataclass(frozen=True, kw_only=True)
class CreateFields(Settings, Ownership):
    """What a create may say."""

    id: Annotated[
        str | None, _field("The new outplan's id; without one it follows from the message's.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class UpdateFields(Settings, Conditions):
    """What an update may say, apart from the id."""


@dataclass(frozen=True, kw_only=True)
class Sending(Connection):
    """How the command is read, sent and answered."""

    json_file: Annotated[
        str | None,
        _sending(
            "Read the fields from a JSON object; - is standard input. Options win over it.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None
    message_id: Annotated[
        str | None,
        _sending(
            "The command's id. Sent again under the same one, it is not applied twice.",
            callback=short_text,
            show_default=False,
        ),
    ] = None
    wait: Annotated[bool, _sending("Await the outcome, not only the broker's confirmation.")] = True
    validate: Annotated[
        bool, _sending("Check the fields before they are sent, not only at the worker.")
    ] = True
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=_SENDING, help="Print one JSON object.")
    ] = False


OutplanId = Annotated[str | None, typer.Argument(metavar="ID", show_default=False)]


@app.command(no_args_is_help=True)
@grouped
def create(fields: CreateFields, sending: Sending) -> None:
    """Create an outplan; it needs a customer, a name and a source."""
    _publish("outplan_create", asdict(fields), sending)


@app.command(no_args_is_help=True)
@grouped
def update(fields: UpdateFields, sending: Sending, outplan_id: OutplanId = None) -> None:
    """Change any fields of the outplan ID; the others stay as they are."""
    _publish("outplan_update", {"id": outplan_id, **asdict(fields)}, sending)


@app.command(no_args_is_help=True)
@grouped
def delete(fields: Conditions, sending: Sending, outplan_id: OutplanId = None) -> None:
    """Delete the outplan ID. Its history stays, and its id is not free again."""
    _publish("outplan_delete", {"id": outplan_id, **asdict(fields)}, sending)


def _publish(name: "CommandName", options: dict[str, Any], sending: Sending) -> None:
    from outplan.cli.publish import publishing  # noqa: PLC0415 - brings the client, not for --help

    given = {field: value for field, value in options.items() if value is not None}
    publishing.publish(name, given, sending)
