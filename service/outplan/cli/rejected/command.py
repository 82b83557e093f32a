"""``outplan rejected``: the commands that were rejected, to look at, to send again, to drop."""

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from outplan.cli.options import grouped
from outplan.cli.outcome import carried_out
from outplan.cli.place import AMQP_URL, PREFIX, AmqpUrl, Prefix

app = typer.Typer(
    no_args_is_help=True, help="Look at rejected commands, send them again, or drop them."
)

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_BROKERS_REASONS: Final = ("expired", "maxlen", "rejected")
_CONDITIONS: Final = "Conditions, all of which have to hold"


def _age(text: str) -> timedelta:
    parts = re.findall(r"(\d+)([smhdw])", text)
    if not parts or "".join(map("".join, parts)) != text:
        raise typer.BadParameter(f"{text!r} is no age such as 45s, 30m, 12h, 1d12h or 2w")
    try:
        return sum((timedelta(**{_UNITS[u]: int(n)}) for n, u in parts), timedelta())
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is longer ago than can be counted") from None


def _uuid(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(UUID(text))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no UUID") from None


def _known_codes() -> list[str]:
    from outplan.contract.messages import PROBLEM_CODES  # noqa: PLC0415 - not for --help

    return [*PROBLEM_CODES, *_BROKERS_REASONS]


def _codes(codes: list[str]) -> list[str]:
    known = _known_codes()
    for code in codes:
        if code not in known:
            raise typer.BadParameter(f"{code!r} is none of {', '.join(known)}")
    return codes


def _condition(help_: str, *names: str, **how: Any) -> Any:
    return typer.Option(*names, rich_help_panel=_CONDITIONS, show_default=False, help=help_, **how)


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Where the copies are."""

    amqp_url: AmqpUrl = AMQP_URL
    prefix: Prefix = PREFIX


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Which copies are meant."""

    code: Annotated[
        list[str],
        _condition(
            "The problem's code, or the broker's reason. May be repeated.",
            callback=_codes,
            autocompletion=_known_codes,
            metavar="CODE",
        ),
    ] = ()  # type: ignore[assignment] # typer takes it for a default, and makes a list
    customer: Annotated[
        str | None, _condition("The customer's id.", callback=_uuid, metavar="UUID")
    ] = None
    outplan: Annotated[
        str | None, _condition("The outplan's id.", callback=_uuid, metavar="UUID")
    ] = None
    older_than: Annotated[
        Any, _condition("Rejected longer ago than 30m, 12h, 2d …", parser=_age, metavar="AGE")
    ] = None
    newer_than: Annotated[
        Any, _condition("Rejected since 30m, 12h, 2d … ago.", parser=_age, metavar="AGE")
    ] = None
    number: Annotated[
        list[int],
        _condition(
            "The number that list shows, 1 the oldest. May be repeated.", min=1, metavar="N"
        ),
    ] = ()  # type: ignore[assignment] # as above


@dataclass(frozen=True, kw_only=True)
class Chosen(Conditions):
    """Conditions of a command that has to be told which copies it is to act on."""

    all: Annotated[
        bool, _condition("All copies that are there, without any condition.", "--all")
    ] = False


Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="MESSAGE_ID", show_default=False, help="Which. One, or several."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, an object a line.")]


@app.command("list")
@grouped
def list_(
    message_id: Annotated[
        list[str] | None,
        _condition("The command's id. May be repeated.", "--message-id", metavar="MESSAGE_ID"),
    ] = None,
    *,
    conditions: Conditions,
    limit: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Show the N oldest only; 0 only counts."),
    ] = None,
    as_json: AsJson = False,
    queue: Queue,
) -> None:
    """List rejected commands, the oldest first, and count them by code."""
    from outplan.cli.rejected import operating  # noqa: PLC0415 - not for --help

    with operating.told():
        carried_out(operating.list_copies(queue, conditions, message_id or [], limit, as_json))


@app.command()
@grouped
def show(
    which: Annotated[
        str, typer.Argument(metavar="MESSAGE_ID|N", show_default=False, help="Which.")
    ],
    *,
    as_json: AsJson = False,
    queue: Queue,
) -> None:
    """Show a rejected command: why, each broken rule, its body, and whether it would pass now.

    By its message_id, or by the number that list shows.
    """
    from outplan.cli.rejected import operating  # noqa: PLC0415 - not for --help

    with operating.told():
        carried_out(operating.show_copies(queue, which, as_json))


@app.command()
@grouped
def redrive(
    message_id: Ids = None,
    *,
    chosen: Chosen,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would pass the schema now; send nothing.")
    ] = False,
    rate: Annotated[
        float, typer.Option(min=0.01, max=10_000, metavar="N", help="Send N a second at most.")
    ] = 50,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long to await an outcome.")
    ] = 30,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="Also where one is rejected for the same reason again."),
    ] = False,
    as_json: AsJson = False,
    queue: Queue,
) -> None:
    """Send rejected commands again, the oldest first, under the same message_id.

    What doesn't pass the schema as it is now is not sent. A copy goes when its command has an
    outcome: interrupted at any moment, nothing is lost.
    """
    from outplan.cli.rejected import operating  # noqa: PLC0415 - not for --help

    how = operating.Redriving(dry_run, rate, timeout, keep_going)
    with operating.told():
        carried_out(operating.redrive_copies(queue, chosen, message_id or [], how, as_json))


@app.command()
@grouped
def discard(
    message_id: Ids = None,
    *,
    chosen: Chosen,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False, dir_okay=False,
            help="First add them to a file, whole, as JSON Lines.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: AsJson = False,
    queue: Queue,
) -> None:  # fmt: skip
    """Drop rejected commands for ever, after asking."""
    from outplan.cli.rejected import operating  # noqa: PLC0415 - not for --help

    with operating.told():
        carried_out(operating.discard_copies(queue, chosen, message_id or [], save, yes, as_json))
