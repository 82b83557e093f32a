"""Run the demo and the sandbox on servers of their own: ``outplan demo``, ``outplan sandbox``."""

from importlib.util import find_spec

from outplan.cli.errors import fail
from outplan.testing.demo import DemoFailed, play_demo
from outplan.testing.errors import ServersUnavailable, WorkerFailed
from outplan.testing.sandbox import keep_sandbox_running

# The harness imports it only to start containers; without it the extra is not installed.
if find_spec("testcontainers") is None:
    raise ModuleNotFoundError("no module named testcontainers", name="testcontainers")


def run_demo() -> None:
    """Run the demo to its end."""
    try:
        play_demo()
    except (DemoFailed, ServersUnavailable, WorkerFailed) as error:
        fail(error)


def run_sandbox() -> None:
    """Run the sandbox until Ctrl-C."""
    try:
        keep_sandbox_running()
    except (ServersUnavailable, WorkerFailed) as error:
        fail(error)
