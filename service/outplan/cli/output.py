"""Print for people: lines that can be copied whole, tables, errors, and a spinner.

rich decides on colour: none in a pipe, or under NO_COLOR.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from shutil import get_terminal_size
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Wider than any row, so that rich neither wraps nor cuts it.
_UNLIMITED: Final = 1_000_000


def escape(text: str) -> str:
    r"""Escape characters that are not printable, as Python does: ``\n``, ``\x1b``.

    Text from other people could steer the terminal with control characters, or hide what it says
    with characters that have no width or turn the direction of writing.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escape_json(text: str) -> str:
    """Escape characters that are not printable in one line of JSON, without changing its value."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def make_console(*, stderr: bool = False) -> Console:
    """Open a console on standard output or standard error."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # Its encoding may lack characters.
    plain = bool(os.environ.get("NO_COLOR"))
    # rich takes a dumb terminal to be 80 columns wide.
    dumb = os.environ.get("TERM") == "dumb"
    width, height = get_terminal_size() if dumb else (None, None)
    return Console(
        stderr=stderr, color_system=None if plain else "auto", highlight=False, markup=False,
        emoji=False, width=width, height=height,
    )  # fmt: skip


def make_table(*, indent: bool = False) -> Table:
    """Start a table without borders: two spaces between columns and, if indented, before them."""
    padding = (0, 0, 0, 2) if indent else (0, 2, 0, 0)
    return Table(box=None, show_header=False, padding=padding, pad_edge=indent)


def print_table(table: Table, *, console: Console | None = None, fit: bool = False) -> None:
    """Print a table to standard output; ``fit`` cuts it to the terminal's width.

    Lines end with their text, so that copying one copies no blanks.
    """
    console = console or make_console()
    width = console.width if fit and console.is_terminal else _UNLIMITED
    for segments in console.render_lines(table, console.options.update(width=width), pad=False):
        line = Text.assemble(*((text, style or "") for text, style, _ in segments))
        line.rstrip()
        _print_line(console, line)


def print_line(text: str, style: str = "") -> None:
    """Print a line to standard output, without wrapping it."""
    _print_line(make_console(), Text(text, style))


def print_note(text: str) -> None:
    """Print to standard error what is no result."""
    _print_line(make_console(stderr=True), Text(text))


def print_error(*lines: str) -> None:
    """Print an error to standard error; the first line names the program."""
    first, *more = lines
    for line in (f"outplan: {first}", *more):
        print_note(line)


def announce_input() -> None:
    """Say that the command reads what is typed."""
    print_error("reading from the terminal; Ctrl-D ends the input")


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show on standard error any obstacle, and on a terminal what the command waits for."""
    if not sys.stderr.isatty():
        with report_obstacles():
            yield
        return
    with (
        make_console(stderr=True).status(text) as status,
        forward_client_log(lambda obstacle: status.update(Text(f"{text} ({obstacle})"))),
    ):
        yield


@contextmanager
def report_obstacles() -> Iterator[None]:
    """Print each obstacle that the client meets, while it tries again."""
    with forward_client_log(lambda obstacle: print_error(f"{obstacle}; trying again")):
        yield


@contextmanager
def forward_client_log(on_message: Callable[[str], None]) -> Iterator[None]:
    """Call ``on_message`` with what the client logs about its connection, without repetitions."""
    handler = _ForwardingHandler(on_message)
    logger = logging.getLogger("outplan.client")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _ForwardingHandler(logging.Handler):
    def __init__(self, on_message: Callable[[str], None]) -> None:
        super().__init__()
        self._on_message = on_message
        self._last = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = escape(record.getMessage())
        if text != self._last:
            self._last = text
            self._on_message(text)


def _print_line(console: Console, line: Text) -> None:
    console.print(line, soft_wrap=True)
