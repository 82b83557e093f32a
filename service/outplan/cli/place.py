"""Where the broker is: options that the commands for publishers and subscribers share."""

import re
from typing import Annotated

import typer


def _address(url: str) -> str:
    from outplan.urls import check_amqp_url  # noqa: PLC0415 - not for --help and --version

    try:
        return check_amqp_url(url)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _name_prefix(prefix: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", prefix):
        raise typer.BadParameter("should be 1 to 100 letters, digits, dots, dashes or underscores")
    return prefix


AmqpUrl = Annotated[
    str,
    typer.Option(
        "--amqp-url", envvar="OUTPLAN_AMQP_URL", show_envvar=True, metavar="URL",
        callback=_address, help="The broker's address.",
    ),
]  # fmt: skip
Prefix = Annotated[
    str,
    typer.Option(
        "--prefix", envvar="OUTPLAN_PREFIX", show_envvar=True, metavar="TEXT",
        callback=_name_prefix, help="The service's name prefix.",
    ),
]  # fmt: skip

AMQP_URL = "amqp://guest:guest@localhost:5672/"
PREFIX = "outplan"
