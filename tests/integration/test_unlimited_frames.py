"""Test a broker without a frame size limit (frame_max 0)."""

import asyncio

from outplan.testing import Deployment
from outplan.testing.servers import RabbitServer, Servers
from tests.support.worker_process import run_worker
from tests.support.world import create_body, open_world


async def set_frame_max(broker: RabbitServer, size: int) -> None:
    code = f"application:set_env(rabbit, frame_max, {size})."
    await asyncio.to_thread(broker.ctl, "eval", code)


async def test_messages_keep_their_bodies_without_a_frame_limit(
    servers: Servers, deployment: Deployment
) -> None:
    async with open_world(deployment) as world:
        await set_frame_max(servers.rabbitmq, 0)
        try:
            async with run_worker(deployment):
                body = create_body(detail="x" * 60_000)
                reply = await world.ask("outplan_create", body)
                await world.ask("outplan_create", {"name": "wrong"})
        finally:
            await set_frame_max(servers.rabbitmq, 131_072)
        await world.wait_for(lambda: bool(world.events and world.rejected))

    assert reply["outplan"]["detail"] == body["detail"]
    assert world.rejected[0].body == b'{"name": "wrong"}'
