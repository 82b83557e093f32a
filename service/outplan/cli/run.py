"""Run a worker: ``outplan run``."""

import uvloop

from outplan import bootstrap
from outplan.cli.errors import fail
from outplan.errors import Fatal
from outplan.settings import load_settings


def run_worker() -> None:
    """Run a worker with the settings in the environment until a signal stops it."""
    try:
        uvloop.run(bootstrap.run(load_settings()))
    except Fatal as error:
        fail(error, error.exit_code)
