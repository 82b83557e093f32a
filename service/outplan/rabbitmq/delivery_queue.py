"""Wait for a channel's messages one at a time."""

import asyncio

from outplan.contract.amqp import Delivery
from outplan.rabbitmq.connection import ConnectionGuard
from outplan.rabbitmq.reader import FrameHandler


class DeliveryQueue(FrameHandler):
    """A channel's messages in the order of arrival. What has arrived outlasts the connection."""

    def __init__(self, guard: ConnectionGuard) -> None:
        self._guard = guard
        self._deliveries: asyncio.Queue[Delivery | None] = asyncio.Queue()
        guard.lost.add_done_callback(lambda _: self._deliveries.put_nowait(None))

    def on_delivery(self, delivery: Delivery) -> None:
        self._deliveries.put_nowait(delivery)

    async def take(self) -> Delivery:
        """Wait for the next message. Raises BrokerUnavailable after the last."""
        delivery = await self._deliveries.get()
        if delivery is None:
            raise self._guard.lost.result()
        return delivery
