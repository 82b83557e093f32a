"""Where the broker is: options that the commands for publishers and subscribers share."""

from typing import Annotated

import typer

AmqpUrl = Annotated[
    str,
    typer.Option(
        "--amqp-url", envvar="OUTPLAN_AMQP_URL", show_envvar=True, help="The broker's address.",
    ),
]  # fmt: skip
Prefix = Annotated[
    str,
    typer.Option(
        "--prefix", envvar="OUTPLAN_PREFIX", show_envvar=True, help="The service's name prefix.",
    ),
]  # fmt: skip

AMQP_URL = "amqp://guest:guest@localhost:5672/"
PREFIX = "outplan"
