"""What a person sees: plain lines that can be copied whole, and signs of life while they wait.

Colour is rich's to decide: none where standard output is no terminal, or under NO_COLOR.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from shutil import get_terminal_size

from rich.console import Console
from rich.text import Text

from outplan.cli.legible import legible


def a_console(*, stderr: bool = False) -> Console:
    """A terminal, or a pipe or file; without any colour or style under NO_COLOR."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # It may not know the letters.
    plain = bool(os.environ.get("NO_COLOR"))
    # Of a terminal that can do nothing rich takes it that it is 80 columns wide.
    dumb = os.environ.get("TERM") == "dumb"
    width, height = get_terminal_size() if dumb else (None, None)
    return Console(
        stderr=stderr, color_system=None if plain else "auto", highlight=False, markup=False,
        width=width, height=height,
    )  # fmt: skip


def say(text: str, style: str = "") -> None:
    """Print a line to standard output, never broken where it is long."""
    _print(a_console(), Text(text, style))


def complain(*lines: str) -> None:
    """Print to standard error what is wrong."""
    first, *more = lines
    for line in (f"outplan: {first}", *more):
        _print(a_console(stderr=True), Text(line))


@contextmanager
def invitation() -> Iterator[None]:
    """Say that input is to be typed."""
    complain("reading from the terminal; Ctrl-D ends the input")
    yield


@contextmanager
def patience(what: str) -> Iterator[None]:
    """Show on a terminal's standard error what is waited for, and what is in the way."""
    if not sys.stderr.isatty():
        yield
        return
    with (
        a_console(stderr=True).status(what) as status,
        notices(lambda text: status.update(Text(f"{what} ({text})"))),
    ):
        yield


@contextmanager
def notices(tell: Callable[[str], None]) -> Iterator[None]:
    """Hand on what the client notes of its connection, each new thing once."""
    handler = _Notices(tell)
    logger = logging.getLogger("outplan.client")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Notices(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell
        self._last = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = legible(record.getMessage())
        if text != self._last:
            self._last = text
            self._tell(text)


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)
