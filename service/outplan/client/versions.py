"""Drop repeated events and report missing ones. Pure: no I/O."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, get_args
from uuid import UUID

from outplan.client.models import Event
from outplan.client.values import read_text
from outplan.contract.fields import UUID_TARGET
from outplan.contract.messages import EventType

_KINDS: Final = get_args(EventType)


@dataclass(frozen=True, slots=True)
class Gap:
    """The versions ``first`` to ``last`` of an outplan, whose events did not arrive.

    Every event carries the whole document, so the next one makes up for them.
    """

    outplan_id: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A message that is no event; ``reason`` says why.

    In ``routing_key``, bytes that are not UTF-8 are written as escapes.
    """

    routing_key: str
    body: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Filter:
    """A selection of events; a field not given selects all."""

    kinds: frozenset[EventType] = frozenset()
    customer_id: str | None = None
    outplan_id: str | None = None

    @classmethod
    def of(
        cls, kinds: Collection[EventType], customer_id: object | None, outplan_id: object | None
    ) -> "Filter":
        """Take ids as text or UUID, in either case. Raises ValueError for what no event fits."""
        if unknown := set(kinds).difference(_KINDS):
            raise ValueError(f"kinds are among {', '.join(_KINDS)}; not {sorted(unknown)}")
        ids = _optional_id("customer_id", customer_id), _optional_id("outplan_id", outplan_id)
        return cls(frozenset(kinds), *ids)

    @property
    def binding_keys(self) -> tuple[str, ...]:
        ids = f"{self.customer_id or '*'}.{self.outplan_id or '*'}"
        return tuple(f"{kind}.{ids}" for kind in sorted(self.kinds) or ("*",))

    def wants(self, event: Event) -> bool:
        """Return whether the event is selected: a durable queue may have earlier bindings."""
        return (
            (not self.kinds or event.type in self.kinds)
            and self.customer_id in (None, event.data.customer_id)
            and self.outplan_id in (None, event.data.id)
        )

    @property
    def has_updates(self) -> bool:
        return not self.kinds or "outplan_updated" in self.kinds


class Versions:
    """Track the last version of each outplan; ``seen`` are those the caller knows already.

    The first event of an unknown outplan opens no gap, whatever its version.
    """

    def __init__(self, wanted: Filter, seen: Mapping[str, int] | Mapping[UUID, int]) -> None:
        self._wanted = wanted
        self._last = {_id("a key of seen", id_): version for id_, version in seen.items()}

    def judge(self, event: Event) -> Iterator[Event | Gap]:
        """Yield the event unless it is a repeat, after a Gap if versions are missing."""
        if not self._wanted.wants(event):
            return
        last = self._last.get(event.data.id)
        if last is not None and event.version <= last:
            return
        self._last[event.data.id] = event.version
        # Between two events of an outplan there are only updates: it is created once, and nothing
        # follows its deletion.
        if last is not None and event.version > last + 1 and self._wanted.has_updates:
            yield Gap(event.data.id, last + 1, event.version - 1)
        yield event


def _optional_id(name: str, given: object | None) -> str | None:
    return None if given is None else _id(name, given)


def _id(name: str, given: object) -> str:
    id_ = read_text(given)
    if id_ is None or not UUID_TARGET.match(id_):
        raise ValueError(f"{name} is a UUID, not {given!r}")
    return id_.lower()
