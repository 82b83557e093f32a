"""Show events as they arrive: ``outplan watch``."""

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Protocol, cast

from rich.text import Text
from yarl import URL

from outplan.cli.errors import fail, handle_errors, run_async
from outplan.cli.options import WatchOptions
from outplan.cli.output import (
    escape,
    escape_json,
    forward_client_log,
    make_console,
    make_table,
    print_error,
    print_table,
)
from outplan.cli.stdout import AsyncStdout
from outplan.client import Event, Gap, Outplan, Reconnected, Unreadable, events
from outplan.client.events import Item
from outplan.contract.messages import Address, EventType

_MAX_REASON: Final = 300
_COLOURS: Final = {
    "outplan_created": "green",
    "outplan_updated": "yellow",
    "outplan_deleted": "red",
}
_COUNTS: Final = tuple(f"max_try_count_{n}" for n in range(5))
_INDENT: Final = " " * 10
# Time, event, version and id, which must stay whole, and room for a name beside them.
_MIN_WIDTH: Final = 8 + 2 + 7 + 2 + 7 + 2 + 36 + 12
_MAX_VALUE: Final = 80
# Limits the memory that a long watch takes.
_MAX_REMEMBERED: Final = 10_000


def watch_events(options: WatchOptions) -> None:
    """Show events until ``options.limit``, or until nobody reads standard output."""
    with handle_errors():
        try:
            run_async(_watch(options))
        except OSError as error:
            fail(f"standard output: {error.strerror}")


class View(Protocol):
    """Show events; ``forget`` tells that events of an outplan are missing."""

    def show(self, event: Event) -> None: ...
    def forget(self, gap: Gap) -> None: ...


class JsonLines:
    """Write each event's JSON on a line."""

    def __init__(self, stdout: AsyncStdout) -> None:
        self._stdout = stdout

    def show(self, event: Event) -> None:
        # JSON strings hold no raw line break, so each one is white space.
        line = event.raw.decode().replace("\r", " ").replace("\n", " ")
        self._stdout.write_line(escape_json(line) if sys.stdout.isatty() else line)

    def forget(self, gap: Gap) -> None: ...


class EventTable:
    """Print a row for each event, and below it what changed.

    An update's row shows the values before it if an earlier event was printed. Text from other
    people is escaped.
    """

    def __init__(self) -> None:
        self._console = make_console()
        self._narrow = self._console.width < _MIN_WIDTH
        self._known: OrderedDict[str, Outplan] = OrderedDict()
        self._day = ""

    def show(self, event: Event) -> None:
        """Print an event."""
        day, _, time = event.time.partition(" ")
        if day != self._day:
            self._print(day, "dim")
            if not self._day:
                self._print_header()
            self._day = day
        kind = Text(event.type.removeprefix("outplan_"), _COLOURS[event.type])
        name = escape(event.data.name)
        self._print_row(time[:8], kind, str(event.version), event.data.id, name)
        for line in self._describe(event):
            self._print(_INDENT + line)
        self._remember(event.data)

    def forget(self, gap: Gap) -> None:
        """Forget an outplan's values, since missing events may have changed them."""
        self._known.pop(gap.outplan_id, None)

    def _print_header(self) -> None:
        if self._narrow:
            self._print_row("UTC", Text("event"), "v", "outplan and name", style="dim")
        else:
            self._print_row("UTC", Text("event"), "version", "outplan", "name", style="dim")

    def _print_row(
        self, time: str, kind: Text, version: str, id_: str, name: str = "", *, style: str = ""
    ) -> None:
        table = make_table()
        table.add_column(width=8)
        table.add_column(width=7)
        table.add_column(min_width=3 if self._narrow else 7, no_wrap=True, justify="right")
        table.add_column(min_width=36, no_wrap=True)
        beside, below = ("", name) if self._narrow else (name, "")
        # The name is the only cell that rich may cut, so that the id stays whole.
        cut = Text(beside, no_wrap=True, overflow="ellipsis")
        table.add_row(time, kind, version, id_, cut, style=style)
        print_table(table, console=self._console, fit=not self._narrow)
        if below:
            self._print(_INDENT + below)

    def _describe(self, event: Event) -> Iterator[str]:
        if event.type == "outplan_created":
            yield from _describe_outplan(event.data)
        before = self._known.get(event.data.id)
        for field in event.changed or ():
            values = [_format(outplan, field) for outplan in (before, event.data) if outplan]
            yield f"{field} {' → '.join(values)}"

    def _remember(self, outplan: Outplan) -> None:
        self._known[outplan.id] = outplan
        self._known.move_to_end(outplan.id)
        if outplan.deleted or len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=outplan.deleted)

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)


async def _watch(options: WatchOptions) -> None:
    stdout = AsyncStdout()
    view = JsonLines(stdout) if options.as_json or not sys.stdout.isatty() else EventTable()
    with forward_client_log(lambda obstacle: print_error(f"{obstacle}; trying again")):
        showing = asyncio.create_task(_show_stream(options, view, stdout))
        try:
            await asyncio.wait([showing, stdout.closed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            showing.cancel()
            with suppress(asyncio.CancelledError, BrokenPipeError):
                await showing


async def _show_stream(options: WatchOptions, view: View, stdout: AsyncStdout) -> None:
    stream = events(
        options.amqp_url,
        prefix=options.prefix,
        kinds=[cast(EventType, f"outplan_{kind}") for kind in options.kind],
        customer_id=options.customer_id,
        outplan_id=options.outplan_id,
        queue=options.queue,
        on_reconnect=_report_reconnect,
    )
    url = URL(options.amqp_url)
    shown = 0
    async with stream:
        print_error(f"watching {options.prefix}.events at {url.host}:{url.port or 5672}")
        async for item in stream:
            await stdout.wait_writable()
            show_item(item, view)
            shown += isinstance(item, Event)
            if shown == options.limit:
                break
        if options.queue is not None:
            await stream.settle()


def show_item(item: Item, view: View) -> None:
    """Show an event; print what is missing or unreadable to standard error."""
    match item:
        case Event():
            view.show(item)
        case Gap(outplan_id, first, last):
            view.forget(item)
            versions = f"version {first}" if first == last else f"versions {first} to {last}"
            print_error(f"missed {versions} of outplan {outplan_id}")
        case Unreadable(routing_key, _, reason):
            print_error(f"cannot read a message with routing key {escape(routing_key)}: "
                        f"{_shorten(reason)}")  # fmt: skip


def _shorten(reason: str) -> str:
    text = " ".join(reason.split())
    return escape(text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}…")


def _report_reconnect(reconnected: Reconnected) -> None:
    missed = (
        "no event was missed" if reconnected.lossless else "events published meanwhile are lost"
    )
    print_error(f"reconnected; {missed}")


def _describe_outplan(outplan: Outplan) -> Iterator[str]:
    yield f"customer_id {outplan.customer_id}"
    yield f"source {_format(outplan, 'source')}"
    counts = " ".join(str(getattr(outplan, field)) for field in _COUNTS)
    yield (
        f"dial_timeout {outplan.dial_timeout}  try_interval {outplan.try_interval}"
        f"  max_try_count_0…4 {counts}"
    )


def _format(outplan: Outplan, field: str) -> str:
    value = getattr(outplan, field)
    if isinstance(value, Address):
        rest = value.model_dump(exclude={"type", "target"}, exclude_defaults=True)
        more = (f" {name} {_quote(text)}" for name, text in rest.items())
        return f"{value.type} {escape(value.target)}{''.join(more)}"
    return _quote(value) if isinstance(value, str) else str(value)


def _quote(text: str) -> str:
    cut = text[:_MAX_VALUE]
    return f'"{escape(cut)}"' + ("…" if cut != text else "")
