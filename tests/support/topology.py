"""Declare the service's exchanges and queues for tests that publish before a worker runs."""

from aio_pika.abc import AbstractChannel

from outplan.contract.topology import Topology


async def declare_topology(channel: AbstractChannel, layout: Topology) -> None:
    """Declare the exchanges, queues and queue bindings of an unpartitioned ``layout``."""
    for exchange in layout.exchanges:
        await channel.declare_exchange(exchange.name, exchange.type, durable=True)
    for queue in layout.queues:
        await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments))
    for binding in layout.bindings:
        target = await channel.get_queue(binding.destination, ensure=False)
        await target.bind(binding.source, binding.routing_key)
