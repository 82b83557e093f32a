"""``outplan run``: the worker itself."""

from importlib.metadata import version

from outplan.cli.outcome import failure
from outplan.errors import Fatal


def run() -> None:
    """Run a worker until SIGTERM or Ctrl-C; a second one leaves at once."""
    # The worker and its drivers take half a second to import: the other commands do without.
    import structlog  # noqa: PLC0415
    import uvloop  # noqa: PLC0415

    from outplan import bootstrap  # noqa: PLC0415
    from outplan.settings import load_settings  # noqa: PLC0415
    from outplan.worker.telemetry import configure_logging  # noqa: PLC0415

    try:
        settings = load_settings()
        configure_logging(settings.log_format, settings.log_level)
        structlog.get_logger().info("starting", version=version("outplan-service"))
        uvloop.run(bootstrap.run(settings))
    except Fatal as error:
        raise failure(error, error.exit_code) from None
