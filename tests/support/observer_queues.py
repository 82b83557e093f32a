"""Name and consume the queues at which everything that the worker publishes arrives."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from outplan.contract.topology import Binding, Queue, build_topology
from outplan.rabbitmq.session import Session
from tests.support.sessions import consume_queues

_QUORUM: Final[Mapping[str, Any]] = {"x-queue-type": "quorum"}


@dataclass(frozen=True, slots=True)
class ObserverQueues:
    """A queue for replies and one for events, next to the service's queue of rejected copies."""

    prefix: str

    @property
    def replies(self) -> str:
        return f"{self.prefix}.replies"

    @property
    def events(self) -> str:
        return f"{self.prefix}.witness"

    @property
    def rejected(self) -> str:
        return build_topology(self.prefix).rejected.name

    @property
    def own(self) -> list[str]:
        """List the queues that the service does not know."""
        return [self.replies, self.events]

    @asynccontextmanager
    async def open_session(self, url: str) -> AsyncIterator[Session]:
        """Open a session that consumes all three queues."""
        layout = build_topology(self.prefix)
        own = [Queue(name, _QUORUM) for name in self.own]
        bindings = (*layout.bindings, Binding(layout.events.name, self.events, "#"))
        topology = replace(layout, bindings=bindings)
        async with consume_queues(url, topology, [*own, layout.rejected]) as session:
            yield session
