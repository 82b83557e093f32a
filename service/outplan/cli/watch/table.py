"""Events as a table that grows downwards: a line each, and below it what changed."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from rich.text import Text

from outplan.cli.legible import legible
from outplan.cli.terminal import a_console
from outplan.client import Event, Gap, Outplan
from outplan.contract.messages import Address

_COLOURS: Final = {
    "outplan_created": "green",
    "outplan_updated": "yellow",
    "outplan_deleted": "red",
}
_COUNTS: Final = tuple(f"max_try_count_{n}" for n in range(5))
_INDENT: Final = " " * 10
_KIND_AT: Final = len(_INDENT)
_LEAST_NAME: Final = 12
_LONGEST_VALUE: Final = 80
# Outplans whose last values are remembered, so that a long watch takes no more and more memory.
_REMEMBERED: Final = 10_000


class Table:
    """Prints events. Of an update it knows the values before where it has printed an event before.

    All text of other people's is escaped.
    """

    def __init__(self) -> None:
        self._console = a_console()
        # Too narrow for a name beside the id, which has to stay whole: the name goes below.
        self._narrow = self._console.width < len(_columns("", "", "", "")) + _LEAST_NAME
        self._known: OrderedDict[str, Outplan] = OrderedDict()
        self._day = ""

    def event(self, event: Event) -> None:
        """Print an event."""
        day, _, time = event.time.partition(" ")
        if day != self._day:
            self._line(day if self._day else f"{day}\n{self._head()}", "dim")
            self._day = day
        self._row(event, time)
        for line in self._details(event):
            self._line(_INDENT + line)
        self._remember(event.data)

    def gap(self, gap: Gap) -> None:
        """Forget the values of an outplan, since others may have come between."""
        self._known.pop(gap.outplan_id, None)

    def _head(self) -> str:
        if self._narrow:
            return _columns("UTC", "event", "v", "outplan and name", narrow=True).rstrip()
        return f"{_columns('UTC', 'event', 'version', 'outplan')}  name"

    def _row(self, event: Event, time: str) -> None:
        kind = event.type.removeprefix("outplan_")
        text = _columns(time[:8], kind, str(event.version), event.data.id, narrow=self._narrow)
        name = legible(event.data.name)
        row = Text(text if self._narrow else f"{text}  {name}")
        row.stylize(_COLOURS[event.type], _KIND_AT, _KIND_AT + len(kind))
        if not self._narrow:
            row.truncate(self._console.width, overflow="ellipsis")
        self._console.print(row, soft_wrap=True)
        if self._narrow:
            self._line(_INDENT + name)

    def _details(self, event: Event) -> Iterator[str]:
        if event.type == "outplan_created":
            yield from _settings(event.data)
        before = self._known.get(event.data.id)
        for field in event.changed or ():
            values = [_value(outplan, field) for outplan in (before, event.data) if outplan]
            yield f"{field} {' → '.join(values)}"

    def _remember(self, outplan: Outplan) -> None:
        self._known[outplan.id] = outplan
        self._known.move_to_end(outplan.id)
        if outplan.deleted or len(self._known) > _REMEMBERED:
            self._known.popitem(last=outplan.deleted)

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)


def _columns(time: str, kind: str, version: str, id_: str, *, narrow: bool = False) -> str:
    return f"{time:<8}  {kind:<7}  {version:>{3 if narrow else 7}}  {id_:<36}"


def _settings(outplan: Outplan) -> Iterator[str]:
    yield f"customer_id {outplan.customer_id}"
    yield f"source {_value(outplan, 'source')}"
    counts = " ".join(str(getattr(outplan, field)) for field in _COUNTS)
    yield (
        f"dial_timeout {outplan.dial_timeout}  try_interval {outplan.try_interval}"
        f"  max_try_count_0…4 {counts}"
    )


def _value(outplan: Outplan, field: str) -> str:
    value = getattr(outplan, field)
    if isinstance(value, Address):
        rest = value.model_dump(exclude={"type", "target"}, exclude_defaults=True)
        said = (f" {name} {_quoted(text)}" for name, text in rest.items())
        return f"{value.type} {legible(value.target)}{''.join(said)}"
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    cut = text[:_LONGEST_VALUE]
    return f'"{legible(cut)}"' + ("…" if cut != text else "")
