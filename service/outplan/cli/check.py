"""Print what a check of settings, RabbitMQ and MongoDB finds: ``outplan check``."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import orjson
import typer
from rich.text import Text

from outplan.cli.errors import ExitCode, handle_errors, run_async
from outplan.cli.output import escape, escape_json, make_table, print_table
from outplan.operations.check import run_checks
from outplan.operations.findings import Finding

_COLOURS: Final = {"ok": "green", "warning": "yellow", "problem": "red", "not checked": "yellow"}


def print_checks(*, as_json: bool) -> None:
    """Print a line for each finding; raise typer.Exit if a worker could not run."""
    with handle_errors():
        findings, settings_valid = run_async(run_checks())
    if as_json:
        for finding in findings:
            typer.echo(escape_json(orjson.dumps(asdict(finding)).decode()))
    else:
        _print(findings)
    if not settings_valid:
        raise typer.Exit(ExitCode.WRONG_USAGE)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(ExitCode.FAILED)


def _print(findings: Sequence[Finding]) -> None:
    table = make_table()
    table.add_column(min_width=11)
    for finding in findings:
        state = Text(finding.state, _COLOURS[finding.state])
        table.add_row(state, f"{finding.point}: {escape(finding.text)}")
        if finding.remedy:
            table.add_row("", f"→ {escape(finding.remedy)}")
    print_table(table)
