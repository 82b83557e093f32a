"""What the command line keeps from people's terminals."""

import subprocess
import sys

PROGRAM = """
import warnings
from outplan.cli.outcome import carried_out

async def work():
    warnings.warn("a coroutine was never awaited", RuntimeWarning)

carried_out(work())
"""


def complaints(*options: str) -> str:
    return subprocess.run(
        [sys.executable, *options, "-c", PROGRAM], stderr=subprocess.PIPE, text=True, check=True
    ).stderr


def test_warnings_meant_for_programmers_are_shown_to_those_who_ask_for_them_only() -> None:
    assert complaints() == ""
    assert "never awaited" in complaints("-W", "default")
