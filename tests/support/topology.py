"""Declare the service's exchanges and queues for tests that publish before a worker runs."""

import asyncio

from aio_pika.abc import AbstractChannel

from outplan.contract.topology import Topology


async def declare_topology(channel: AbstractChannel, layout: Topology) -> None:
    """Declare the exchanges, queues and bindings of ``layout``."""
    for exchange in layout.exchanges:
        await channel.declare_exchange(
            exchange.name, exchange.type, durable=True, arguments=dict(exchange.arguments)
        )
    for queue in layout.queues:
        await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments))
    for binding in layout.bindings:
        get = channel.get_exchange if binding.to_exchange else channel.get_queue
        target = await get(binding.destination, ensure=False)
        await target.bind(binding.source, binding.routing_key)
    partitions = {q.name: await channel.get_queue(q.name, ensure=False) for q in layout.partitions}
    await asyncio.gather(
        *(partitions[b.destination].bind(b.source, b.routing_key) for b in layout.slot_bindings)
    )
