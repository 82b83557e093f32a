"""Find processes that a test run left behind."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

WAIT_SECONDS = 30.0


def find_processes_with(setting: str) -> list[int]:
    """Return the pids of all processes with this ``NAME=value`` in their environment."""
    return [
        int(environ.parent.name)
        for environ in Path("/proc").glob("[0-9]*/environ")
        if setting in _read(environ).split("\0")
    ]


def wait_until(condition: Callable[[], object]) -> None:
    """Poll until ``condition`` is true; fail after WAIT_SECONDS."""
    deadline = monotonic() + WAIT_SECONDS
    while not condition():
        assert monotonic() < deadline
        sleep(0.05)


def _read(environ: Path) -> str:
    try:
        return environ.read_text(errors="replace")
    except OSError:
        return ""
