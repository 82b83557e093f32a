"""Declare exchanges, queues and bindings; change the bindings of slots under a lock."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from aiormq.channel import Channel
from aiormq.exceptions import ChannelLockedResource

from outplan.contract.slots import SLOTS
from outplan.contract.topology import Binding, Queue, Topology
from outplan.errors import OutplanError
from outplan.rabbitmq.connection import Connection, explain_conflicts, translate_errors

# The broker handles a channel's requests one after the other.
_CHANNELS: Final = 8


class LockTaken(OutplanError):
    """Raised when another connection may change the bindings of slots now."""


async def declare_topology(
    channel: Channel, topology: Topology, queues: Iterable[Queue] = ()
) -> None:
    """Declare everything but the partitions and the bindings of slots, and further ``queues``.

    Raises BrokerRefused for what exists with other arguments.
    """
    for exchange in topology.exchanges:
        with explain_conflicts(f"exchange {exchange.name}"):
            await channel.exchange_declare(
                exchange.name,
                exchange_type=exchange.type,
                durable=True,
                arguments=dict(exchange.arguments),
            )
    named = {queue.name: queue for queue in (topology.rejected, topology.main, *queues)}
    await declare_queues(channel, named.values())
    for b in topology.bindings:
        with explain_conflicts(f"binding {b.source} to {b.destination}"):
            bind = channel.exchange_bind if b.to_exchange else channel.queue_bind
            await bind(b.destination, b.source, b.routing_key)
    # Last: until now both ways lead to the main queue, which gets one copy of each command.
    former = topology.former_binding
    await channel.queue_unbind(former.destination, former.source, former.routing_key)
    await channel.exchange_delete(topology.former_exchange)


async def declare_queues(channel: Channel, queues: Iterable[Queue]) -> None:
    """Declare queues. Raises BrokerRefused for one that exists with other arguments."""
    for queue in queues:
        with explain_conflicts(f"queue {queue.name}"):
            await channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))


@asynccontextmanager
async def hold_lock(connection: Connection, topology: Topology) -> AsyncIterator[None]:
    """Let nobody else change the bindings of slots in this block, on this very connection.

    RabbitMQ grants an exclusive queue to one connection, and to the next one once it has finished
    with the first. Raises LockTaken.
    """
    async with connection.temporary_channel() as channel:
        try:
            await channel.queue_declare(topology.lock, exclusive=True)
        except ChannelLockedResource as error:
            raise LockTaken(f"another connection holds {topology.lock}") from error
        try:
            yield
        finally:
            # The connection may be gone, and the lock with it.
            with suppress(OutplanError), translate_errors():
                await channel.queue_delete(topology.lock)


async def bind_slots(connection: Connection, topology: Topology) -> None:
    """Bind each slot to its partition. Needs the lock."""
    await _change_bindings(connection, topology.slot_bindings, "bind")


async def unbind_slots(connection: Connection, topology: Topology) -> None:
    """Unbind each slot from its partition. Needs the lock."""
    await _change_bindings(connection, topology.slot_bindings, "unbind")


async def remove_other_bindings(connection: Connection, topology: Topology, name: str) -> None:
    """Unbind other partitions' slots from the partition with this queue. Needs the lock."""
    queue = next(queue for queue in topology.partitions if queue.name == name)
    right = {b.routing_key for b in topology.slot_bindings if b.destination == name}
    possible = (topology.bind_slot(slot, queue) for slot in SLOTS)
    others = [b for b in possible if b.routing_key not in right]
    await _change_bindings(connection, others, "unbind")


async def _change_bindings(
    connection: Connection, bindings: Sequence[Binding], change: str
) -> None:
    """Bind or unbind queues, on several channels at a time."""

    async def change_some(channel: Channel, some: Sequence[Binding]) -> None:
        request = channel.queue_bind if change == "bind" else channel.queue_unbind
        for b in some:
            await request(b.destination, b.source, b.routing_key)

    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(connection.temporary_channel())
            for _ in range(min(_CHANNELS, len(bindings)))
        ]
        await connection.guard.wait(
            asyncio.gather(
                *(change_some(c, bindings[n::_CHANNELS]) for n, c in enumerate(channels))
            )
        )
