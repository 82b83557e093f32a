"""How commands end: exit codes, errors in a line, and the errors of the client told apart."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer

from service.client.errors import ClientError, CommandRejected, OutcomeUnknown


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


@contextmanager
def told() -> Iterator[None]:
    """End with a line and a code, not a traceback, where the client or the person gives up."""
    try:
        yield
    except CommandRejected as error:
        raise failure(error, Exit.REJECTED) from None
    except OutcomeUnknown as error:
        raise failure(error, Exit.UNKNOWN) from None
    except ClientError as error:
        raise failure(error) from None
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
