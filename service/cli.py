"""The command line: ``outplan run`` and its neighbours."""

import sys
from importlib.metadata import version
from typing import Annotated

import structlog
import typer
import uvloop

from service import bootstrap
from service.errors import Fatal
from service.settings import load_settings
from service.telemetry import configure_logging

app = typer.Typer(
    help="Outplan commands from RabbitMQ to MongoDB, and events out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("outplan-service"))
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Settings come from OUTPLAN_… variables; see docs/running.md."""


@app.command()
def run() -> None:
    """Run a worker until SIGTERM or Ctrl-C; a second one leaves at once."""
    try:
        settings = load_settings()
        configure_logging(settings.log_format, settings.log_level)
        structlog.get_logger().info("starting", version=version("outplan-service"))
        uvloop.run(bootstrap.run(settings))
    except Fatal as error:
        print(f"outplan: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
