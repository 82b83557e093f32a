"""End commands: exit codes, and one-line messages in place of tracebacks."""

import asyncio
import logging
import signal
import sys
import warnings
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NoReturn, TypeVar

import typer

from outplan.errors import OutplanError

T = TypeVar("T")


class ExitCode(IntEnum):
    """Name the exit codes. typer exits with 2 for wrong usage, too."""

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    REJECTED = 3
    UNKNOWN = 4
    NOT_SENT = 5
    INTERRUPTED = 130


def fail(error: object, code: int = ExitCode.FAILED) -> NoReturn:
    """Print an error to standard error and exit."""
    print(f"outplan: {error}", file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def handle_errors() -> Iterator[None]:
    """Turn errors of the client and of the operations, and Ctrl-C, into a line and an exit code."""
    # Importing the client takes 0.25 s, which commands without it need not wait.
    from outplan.client.errors import (  # noqa: PLC0415
        ClientError,
        CommandRejected,
        OutcomeUnknown,
    )

    try:
        yield
    except CommandRejected as error:
        fail(error, ExitCode.REJECTED)
    except OutcomeUnknown as error:
        fail(error, ExitCode.UNKNOWN)
    except (ClientError, OutplanError) as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end. SIGTERM cancels it and raises KeyboardInterrupt, as Ctrl-C."""
    # The client reports lost connections itself, so the driver's log is not shown.
    logging.getLogger().addHandler(logging.NullHandler())
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # They are for developers.
    try:
        return asyncio.run(_cancel_on_sigterm(work))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _cancel_on_sigterm(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work
