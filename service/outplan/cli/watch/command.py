"""``outplan watch``: what becomes of outplans, as it happens."""

from enum import StrEnum
from typing import Annotated
from uuid import UUID

import typer

from outplan.cli.options import short_text
from outplan.cli.outcome import carried_out, failure, told
from outplan.cli.place import AMQP_URL, PREFIX, AmqpUrl, Prefix


class Kind(StrEnum):
    """A kind of event, as people call it."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


def watch(
    amqp_url: AmqpUrl = AMQP_URL,
    prefix: Prefix = PREFIX,
    kind: Annotated[
        list[Kind] | None,
        typer.Option(
            metavar="KIND",
            help="Only events of this kind: created, updated or deleted. May be given repeatedly.",
        ),
    ] = None,
    customer: Annotated[
        UUID | None, typer.Option(metavar="UUID", help="Only this customer's outplans.")
    ] = None,
    outplan: Annotated[
        UUID | None, typer.Option(metavar="UUID", help="Only this outplan.")
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", callback=short_text,
            help="Read from a durable queue. It is made if need be, stays afterwards, and collects "
            "events also while nobody watches.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after N events.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON Lines on a terminal, too.")
    ] = False,
) -> None:  # fmt: skip
    """Show events as they come: a table on a terminal, JSON Lines otherwise.

    Standard error tells of gaps, unreadable events and lost connections.
    Ctrl-C ends it with exit code 130, the end of its reader (| head -1) with 0.
    """
    with told():
        # The client takes a quarter of a second to import, which --help need not wait.
        from outplan.cli.watch.viewing import Source, viewed  # noqa: PLC0415

        kinds = frozenset(each.value for each in kind or ())
        source = Source(amqp_url, prefix, kinds, customer, outplan, queue)
        try:
            carried_out(viewed(source, limit, as_json))
        except OSError as error:
            raise failure(f"standard output: {error.strerror}") from None
