"""A broker that sets no limit to a frame's size, which the protocol writes as 0."""

import asyncio

from outplan.testing.servers import RabbitServer, Servers
from tests.support.worker_process import Place, running_worker
from tests.support.world import a_create, witness


async def set_frame_max(broker: RabbitServer, size: int) -> None:
    code = f"application:set_env(rabbit, frame_max, {size})."
    await asyncio.to_thread(broker.ctl, "eval", code)


async def test_events_replies_and_rejected_copies_have_their_bodies_without_a_limit(
    servers: Servers, place: Place
) -> None:
    async with witness(place) as outside:
        await set_frame_max(servers.rabbitmq, 0)
        try:
            async with running_worker(place):
                body = a_create(detail="x" * 60_000)
                reply = await outside.ask("outplan_create", body)
                await outside.ask("outplan_create", {"name": "wrong"})
        finally:
            await set_frame_max(servers.rabbitmq, 131_072)
        await outside.until(lambda: bool(outside.events and outside.rejected))

    assert reply["outplan"]["detail"] == body["detail"]
    assert outside.rejected[0].body == b'{"name": "wrong"}'
