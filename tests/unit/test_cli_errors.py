"""Keep warnings for developers from the terminals of users."""

import subprocess
import sys

PROGRAM = """
import warnings
from outplan.cli.errors import run_async

async def work():
    warnings.warn("a coroutine was never awaited", RuntimeWarning)

run_async(work())
"""


def run_program(*options: str) -> str:
    return subprocess.run(
        [sys.executable, *options, "-c", PROGRAM], stderr=subprocess.PIPE, text=True, check=True
    ).stderr


def test_warnings_are_shown_only_on_request() -> None:
    assert run_program() == ""
    assert "never awaited" in run_program("-W", "default")
