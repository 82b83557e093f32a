"""The events that a test has seen, and the wait for those that it has not."""

import asyncio
from uuid import UUID

from outplan.client.models import Event
from outplan.client.versions import Filter
from outplan.contract.messages import EventType


class Arrivals:
    """Events in the order of their arrival: ``all`` with the repeats, ``next`` none twice."""

    def __init__(self) -> None:
        self.all: list[Event] = []
        self._ids: set[str] = set()
        self._waiting: list[Event] = []
        self._news = asyncio.Event()

    def add(self, body: bytes) -> None:
        """Take an event as it was published. ValueError for what is none."""
        event = Event.read(body)
        self.all.append(event)
        if event.id not in self._ids:
            self._ids.add(event.id)
            self._waiting.append(event)
            self._news.set()

    async def next(
        self, kind: EventType | None, outplan_id: str | UUID | None, within: float
    ) -> Event:
        """The first that fits of those not yet returned. TimeoutError after so many seconds."""
        wanted = Filter.of([kind] if kind else [], None, outplan_id)
        try:
            async with asyncio.timeout(within):
                while (event := self._take(wanted)) is None:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            others = [f"{e.type} {e.version} of {e.data.id}" for e in self._waiting]
            asked = f"{kind or 'event'}{f' of {outplan_id}' if outplan_id else ''}"
            came = ", ".join(others) or "nothing"
            raise TimeoutError(f"no {asked} within {within:g} s; waiting: {came}") from None
        return event

    def _take(self, wanted: Filter) -> Event | None:
        fitting = (n for n, event in enumerate(self._waiting) if wanted.wants(event))
        place = next(fitting, None)
        return None if place is None else self._waiting.pop(place)
