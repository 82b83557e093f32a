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
        raise _failure(error, error.exit_code) from None


@app.command()
def demo() -> None:
    """Show what becomes of five commands, on servers and a worker of the demo's own."""
    # A worker has no need of these modules; the same below.
    from service.testing.demo import DemoFailed, play  # noqa: PLC0415
    from service.testing.sandbox import WorkerFailed  # noqa: PLC0415
    from service.testing.servers import ServersUnavailable  # noqa: PLC0415

    try:
        play()
    except (DemoFailed, ServersUnavailable, WorkerFailed) as error:
        raise _failure(error) from None


@app.command()
def sandbox() -> None:
    """Keep servers and a worker of the sandbox's own up, to try out, until Ctrl-C."""
    from service.testing.sandbox import WorkerFailed, stay  # noqa: PLC0415
    from service.testing.servers import ServersUnavailable  # noqa: PLC0415

    try:
        stay()
    except (ServersUnavailable, WorkerFailed) as error:
        raise _failure(error) from None


def _failure(error: Exception, code: int = 1) -> typer.Exit:
    print(f"outplan: {error}", file=sys.stderr)
    return typer.Exit(code)
