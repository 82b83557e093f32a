"""Processes and files that a run has made: who is still there."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

GONE_WITHIN = 30.0


def find_processes_with(setting: str) -> list[int]:
    """The processes that have been given this ``NAME=value`` in their environment."""
    return [
        int(environ.parent.name)
        for environ in Path("/proc").glob("[0-9]*/environ")
        if setting in _read(environ).split("\0")
    ]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = monotonic() + GONE_WITHIN
    while not condition():
        assert monotonic() < deadline
        sleep(0.05)


def _read(environ: Path) -> str:
    try:
        return environ.read_text(errors="replace")
    except OSError:
        return ""
