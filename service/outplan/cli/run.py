"""Run a worker: ``outplan run``."""

from importlib.metadata import version

import structlog
import uvloop

from outplan import bootstrap
from outplan.cli.errors import fail
from outplan.errors import Fatal
from outplan.settings import load_settings
from outplan.worker.telemetry import configure_logging


def run_worker() -> None:
    """Run a worker with the settings in the environment until a signal stops it."""
    try:
        settings = load_settings()
        configure_logging(settings.log_format, settings.log_level)
        structlog.get_logger().info("worker_started", version=version("outplan-service"))
        uvloop.run(bootstrap.run(settings))
    except Fatal as error:
        fail(error, error.exit_code)
