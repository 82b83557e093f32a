"""How commands end: exit codes, errors in a line, and the errors of the client told apart."""

import asyncio
import logging
import os
import signal
import sys
import warnings
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Final, TypeVar

import typer

T = TypeVar("T")

WHERE: Final = "Check --amqp-url (OUTPLAN_AMQP_URL), and that RabbitMQ runs there"


class Exit(IntEnum):
    """Exit codes, for scripts. 2 is what the parser of the command line says, too."""

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    REJECTED = 3
    UNKNOWN = 4
    INTERRUPTED = 130


def failure(error: object, code: int = Exit.FAILED) -> typer.Exit:
    """Say on standard error what is wrong: the exit to raise."""
    print(f"outplan: {error}", file=sys.stderr)
    return typer.Exit(code)


def unwritten(error: OSError) -> typer.Exit:
    """Say which file, or else standard output, could not be used: the exit to raise."""
    let_go()
    return failure(f"{error.filename or 'standard output'}: {error.strerror}")


def let_go() -> None:
    """Forget what standard output has not taken: at the interpreter's end it would fail aloud."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def told() -> Iterator[None]:
    """End with a line and a code, not a traceback, where the client or the person gives up."""
    # The client takes a quarter of a second to import, which --help and --version need not wait.
    from outplan.client.errors import (  # noqa: PLC0415
        ClientError,
        CommandRejected,
        OutcomeUnknown,
        Unreachable,
    )

    try:
        yield
    except CommandRejected as error:
        raise failure(error, Exit.REJECTED) from None
    except OutcomeUnknown as error:
        raise failure(error, Exit.UNKNOWN) from None
    except Unreachable as error:
        raise failure(f"{error}. {WHERE}") from None
    except ClientError as error:
        raise failure(error) from None
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None


def carried_out(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end. SIGTERM ends it as Ctrl-C does: tidied up, by KeyboardInterrupt."""
    # Whatever the driver logs of a lost connection, the client says in its own words.
    logging.getLogger().addHandler(logging.NullHandler())
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # Python's own are for who writes programs.
    try:
        return asyncio.run(_terminable(work))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _terminable(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work
