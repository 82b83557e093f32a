"""``outplan check``: whether a worker could run here, a line a point."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from outplan.cli.legible import legible, legible_json
from outplan.cli.outcome import Exit, carried_out, told

if TYPE_CHECKING:
    from outplan.operations.findings import Finding

_COLOURS: Final = {"ok": "green", "problem": "red", "not checked": "yellow"}


def check(
    as_json: Annotated[bool, typer.Option("--json", help="JSON, an object a line.")] = False,
) -> None:
    """Check settings, RabbitMQ and MongoDB as a worker needs them, and say what to do.

    Nothing is changed. The exit code is 0 where nothing is wrong, 1 where something is, 2 where
    a worker would refuse its settings.
    """
    with told():
        found, usable = carried_out(_findings())
    _print(found, as_json)
    if not usable:
        raise typer.Exit(Exit.WRONG_USAGE)
    if any(finding.state == "problem" for finding in found):
        raise typer.Exit(Exit.FAILED)


async def _findings() -> "tuple[list[Finding], bool]":
    from outplan.operations.check import run_checks  # noqa: PLC0415 - not for --help

    return await run_checks()


def _print(found: "list[Finding]", as_json: bool) -> None:
    import orjson  # noqa: PLC0415 - as above

    if as_json:
        for finding in found:
            typer.echo(legible_json(orjson.dumps(asdict(finding)).decode()))
        return
    from rich.text import Text  # noqa: PLC0415

    from outplan.cli.terminal import a_console  # noqa: PLC0415

    console = a_console()
    for finding in found:
        line = Text(f"{finding.state:<11}  ", _COLOURS[finding.state])
        line.append(f"{finding.point}: {legible(finding.text)}", "default")
        console.print(line, soft_wrap=True)
        if finding.remedy:
            console.print(Text(f"{'':<11}  → {legible(finding.remedy)}"), soft_wrap=True)
