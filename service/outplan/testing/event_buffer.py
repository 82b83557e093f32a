"""Keep the events that a test has received, and wait for further ones."""

import asyncio
from uuid import UUID

from outplan.client.models import Event
from outplan.client.versions import Filter
from outplan.contract.messages import EventType


class EventBuffer:
    """Events in the order of their arrival.

    ``all`` has repeats; ``next`` returns each event once.
    """

    def __init__(self) -> None:
        self.all: list[Event] = []
        self._ids: set[str] = set()
        self._waiting: list[Event] = []
        self._arrived = asyncio.Event()

    def add(self, body: bytes) -> Event:
        """Add an event as it was published; return it.

        Raises ValueError if the body is not an event.
        """
        event = Event.read(body)
        self.all.append(event)
        if event.id not in self._ids:
            self._ids.add(event.id)
            self._waiting.append(event)
            self._arrived.set()
        return event

    async def next(
        self, kind: EventType | None, outplan_id: str | UUID | None, within: float
    ) -> Event:
        """Remove and return the first event that matches. TimeoutError after so many seconds."""
        wanted = Filter.of([kind] if kind else [], None, outplan_id)
        try:
            async with asyncio.timeout(within):
                while (event := self._take(wanted)) is None:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            others = [f"{e.type} {e.version} of {e.data.id}" for e in self._waiting]
            asked = f"{kind or 'event'}{f' of {outplan_id}' if outplan_id else ''}"
            raise TimeoutError(
                f"no {asked} within {within:g} s; waiting: {', '.join(others) or 'nothing'}"
            ) from None
        return event

    def _take(self, wanted: Filter) -> Event | None:
        for index, event in enumerate(self._waiting):
            if wanted.wants(event):
                return self._waiting.pop(index)
        return None
