"""``outplan import``: many commands, or outplans, from JSON Lines."""

from dataclasses import dataclass
from typing import Annotated

import typer

from outplan.cli.options import Connection, grouped


def _encodable(label: str) -> str:
    if not label.isprintable():
        raise typer.BadParameter("should be printable text")
    return label


@dataclass(frozen=True, kw_only=True)
class Import(Connection):
    """How lines are read, sent and reported."""

    in_flight: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="How many commands await an answer.")
    ] = 500
    rejected: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default="FILE.rejected.jsonl",
            help="Where rejected lines go; it is not made where there are none.",
        ),
    ] = None
    from_line: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Pass over the lines before N, done already."),
    ] = 1
    label: Annotated[
        str,
        typer.Option(
            callback=_encodable,
            show_default=False,
            help="Part of the commands' ids: under another label a file is imported anew.",
        ),
    ] = ""
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the lines; no broker is needed.")
    ] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object.")
    ] = False


File = Annotated[str, typer.Argument(metavar="FILE", show_default=False)]


@grouped
def import_(file: File, how: Import) -> None:
    """Send the commands in FILE (JSON Lines; - is standard input), and count the outcomes.

    A line is an outplan, which is created, an event, which is repeated, or a command:
    {"command": "update", "body": {…}}. Importing a file again does nothing twice.
    """
    from outplan.cli.importing import account  # noqa: PLC0415 - brings the client, not for --help

    account.take_in(file, how)
