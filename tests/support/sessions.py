"""Consume any queues through the service's own session, which decodes what aio-pika cannot."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from outplan.contract.topology import Queue, Topology
from outplan.rabbitmq.session import Session, SessionPlan, open_session


@asynccontextmanager
async def consume_queues(
    url: str, topology: Topology, queues: Sequence[Queue]
) -> AsyncIterator[Session]:
    """Declare ``topology``, but for partitions, and consume ``queues``."""
    plan = SessionPlan(
        topology=topology,
        queues=tuple(queues),
        consumed=[queue.name for queue in queues],
        require_layout=_accept_layout,
    )
    async with open_session(plan, url, print) as session:
        yield session


async def _accept_layout() -> None:
    """Return: the plan does not depend on a stored layout."""
