"""How ``outplan watch`` shows events, and what it says of their coming."""

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol, cast
from uuid import UUID

from yarl import URL

from outplan.cli.legible import legible, legible_json
from outplan.cli.terminal import complain, notices
from outplan.cli.watch.outlet import Outlet
from outplan.cli.watch.table import Table
from outplan.client import Event, Events, Gap, Reconnected, Unreadable, events
from outplan.client.events import Item
from outplan.contract.messages import EventType

_LONGEST_REASON: Final = 300


@dataclass(frozen=True, slots=True)
class Source:
    """Which events are wanted, and from where."""

    amqp_url: str
    prefix: str
    kinds: frozenset[str]
    customer: UUID | None
    outplan: UUID | None
    queue: str | None

    def __str__(self) -> str:
        url = URL(self.amqp_url)
        return f"{self.prefix}.events at {url.host}:{url.port or 5672}"

    def events(self, on_reconnect: Callable[[Reconnected], None]) -> Events:
        return events(
            self.amqp_url,
            prefix=self.prefix,
            kinds=[cast(EventType, f"outplan_{kind}") for kind in self.kinds],
            customer_id=self.customer,
            outplan_id=self.outplan,
            queue=self.queue,
            on_reconnect=on_reconnect,
        )


class View(Protocol):
    """Where events are shown. ``gap`` tells that events of an outplan are missing."""

    def event(self, event: Event) -> None: ...
    def gap(self, gap: Gap) -> None: ...


class Lines:
    """Events as they came: JSON, a line each."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def event(self, event: Event) -> None:
        # No string in JSON holds a line break; between its members one is as good as a space.
        line = event.raw.decode().replace("\r", " ").replace("\n", " ")
        self._outlet.write(legible_json(line) if sys.stdout.isatty() else line)

    def gap(self, gap: Gap) -> None: ...


async def viewed(source: Source, limit: int | None, as_json: bool) -> None:
    """Show events: ``limit`` of them, or until nobody reads them any more.

    Raises ClientError, or OSError where they cannot be written.
    """
    outlet = Outlet()
    view = Lines(outlet) if as_json or not sys.stdout.isatty() else Table()
    with notices(lambda trouble: complain(f"{trouble}; trying again")):
        showing = asyncio.create_task(_show(source, view, outlet, limit))
        try:
            await asyncio.wait([showing, outlet.gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            showing.cancel()
            with suppress(asyncio.CancelledError, BrokenPipeError):
                await showing


async def _show(source: Source, view: View, outlet: Outlet, limit: int | None) -> None:
    shown = 0
    async with source.events(_reconnected) as stream:
        complain(f"watching {source}")
        async for item in stream:
            await outlet.ready()
            _show_one(item, view)
            shown += isinstance(item, Event)
            if shown == limit:
                break
        if source.queue is not None:
            await stream.settle()


def _show_one(item: Item, view: View) -> None:
    match item:
        case Event():
            view.event(item)
        case Gap(outplan_id, first, last):
            view.gap(item)
            versions = f"version {first}" if first == last else f"versions {first} to {last}"
            complain(f"missed {versions} of outplan {outplan_id}")
        case Unreadable(routing_key, _, reason):
            complain(f"cannot read what came as {legible(routing_key)}: {_one_line(reason)}")


def _one_line(reason: str) -> str:
    text = " ".join(reason.split())
    return legible(text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…")


def _reconnected(how: Reconnected) -> None:
    missed = "none was missed" if how.lossless else "those published meanwhile were missed"
    complain(f"events come again; {missed}")
