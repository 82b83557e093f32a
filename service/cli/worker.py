"""``outplan run``: the worker itself."""

from importlib.metadata import version

import structlog
import uvloop

from service import bootstrap
from service.cli.outcome import failure
from service.errors import Fatal
from service.settings import load_settings
from service.telemetry import configure_logging


def run() -> None:
    """Run a worker until SIGTERM or Ctrl-C; a second one leaves at once."""
    try:
        settings = load_settings()
        configure_logging(settings.log_format, settings.log_level)
        structlog.get_logger().info("starting", version=version("outplan-service"))
        uvloop.run(bootstrap.run(settings))
    except Fatal as error:
        raise failure(error, error.exit_code) from None
