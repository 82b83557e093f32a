"""Check long outages: MongoDB away past the consumer timeout, and a minute's memory alarm."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from outplan.errors import BrokerUnavailable
from outplan.rabbitmq.connection import open_connection
from outplan.rabbitmq.reader import unused_callback
from outplan.rabbitmq.versions import parse_version
from outplan.testing import Deployment
from outplan.testing.servers import RabbitServer, Servers
from tests.support.scenario import Scenario, assert_scenario, build_scenario, send_scenario
from tests.support.worker_process import WorkerProcess, run_worker
from tests.support.world import World, create_body, open_world

# Before 4.3 the broker checks the consumer timeout once a tick.
ACK_MILLISECONDS = 2_000
TICK_MILLISECONDS = 500
ALARM_SECONDS = 60
# What a worker logs when the consumer timeout ends its session: before 4.3, and since.
TIMED_OUT = "delivery acknowledgement"
CANCELLED = "the broker cancelled the consumer"

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_mongodb_may_be_away_for_longer_than_the_consumer_timeout(
    killable_servers: Servers, deployment: Deployment, how: str
) -> None:
    broker = killable_servers.rabbitmq
    async with (
        shorten_consumer_timeout(broker),
        open_world(deployment) as world,
        run_worker(deployment) as worker,
        run_worker(deployment) as standby,
    ):
        await world.ask("outplan_create", {"name": "wrong"})
        await asyncio.to_thread(getattr(killable_servers.mongodb, how))
        scenario = build_scenario()
        await send_scenario(world, scenario)
        workers = (worker, standby)
        if parse_version(broker.version) < (4, 3):
            await wait_for_any(workers, lambda line: TIMED_OUT in str(line.get("detail")))
        else:
            # The workers ask for a longer timeout. This consumer does not, and it came after them.
            await hold_message_until_cancelled(deployment)
        await asyncio.to_thread(killable_servers.mongodb.start)

        await world.wait_for(lambda: has_events(world, scenario), 60)
        await assert_scenario(world, scenario)
        assert not [line for w in workers for line in w.log if CANCELLED in str(line.get("detail"))]
        assert [await w.stop() for w in workers] == [0, 0]


async def test_readiness_shows_a_memory_alarm_and_no_event_is_repeated(
    killable_servers: Servers, deployment: Deployment
) -> None:
    scenario = build_scenario(outplans=20, rounds=8)
    async with open_world(deployment) as world, run_worker(deployment, http=True) as worker:
        # The alarm blocks publishers, so send the commands before it.
        worker.signal(signal.SIGSTOP)
        await send_scenario(world, scenario)
        async with raise_memory_alarm(killable_servers.rabbitmq):
            worker.signal(signal.SIGCONT)
            await wait_for_readiness(worker, 503)
            answers = [answer async for answer in poll_health(worker, ALARM_SECONDS)]
        await wait_for_readiness(worker, 200)
        await world.wait_for(lambda: has_events(world, scenario), 60)

        assert {(ready, alive) for ready, _, alive in answers} == {(503, 200)}
        assert all("alarm" in reason for _, reason, _ in answers)
        await assert_scenario(world, scenario)
        # The ids include accepted resends: each has an event too.
        assert Counter(e.message_id for e in world.events) == Counter(accepted_ids(scenario))
        assert (await world.ask("outplan_create", create_body()))["status"] == "accepted"


async def wait_for_any(
    workers: Sequence[WorkerProcess], matches: Callable[[dict[str, Any]], bool]
) -> None:
    """Wait until one of the workers has logged a line that matches."""
    waiting = [asyncio.create_task(w.wait_for_log_line(matches, 60)) for w in workers]
    try:
        await next(asyncio.as_completed(waiting))
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def hold_message_until_cancelled(deployment: Deployment) -> None:
    """Take a message, leave it unacked, and wait until the broker cancels the consumer for it."""
    queue = f"{deployment.prefix}.held"
    async with open_connection(deployment.amqp_url, "hold") as connection:
        channel = await connection.open_channel()
        await channel.queue_declare(
            queue, durable=True, arguments={"x-queue-type": "quorum", "x-expires": 60_000}
        )
        await channel.basic_consume(queue, unused_callback)
        await channel.basic_publish(b"", routing_key=queue)
        with pytest.raises(BrokerUnavailable, match=CANCELLED):
            async with asyncio.timeout(60):
                await connection.guard.raise_when_lost()


@asynccontextmanager
async def shorten_consumer_timeout(broker: RabbitServer) -> AsyncIterator[None]:
    """Shorten the broker's consumer timeout from 30 minutes to 2 seconds."""
    await asyncio.to_thread(set_consumer_timeout, broker, ACK_MILLISECONDS, TICK_MILLISECONDS)
    yield
    await asyncio.to_thread(set_consumer_timeout, broker, 1_800_000, 60_000)


def set_consumer_timeout(broker: RabbitServer, ack: int, tick: int) -> None:
    for name, value in (("consumer_timeout", ack), ("channel_tick_interval", tick)):
        broker.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")


@asynccontextmanager
async def raise_memory_alarm(broker: RabbitServer) -> AsyncIterator[None]:
    """Raise RabbitMQ's memory alarm by a watermark that it exceeds."""
    await asyncio.to_thread(broker.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
    yield
    await asyncio.to_thread(broker.ctl, "set_vm_memory_high_watermark", "absolute", "2GB")


async def wait_for_readiness(worker: WorkerProcess, status: int) -> None:
    async with asyncio.timeout(30):
        while (await worker.get("/readyz"))[0] != status:
            await asyncio.sleep(0.1)


async def poll_health(worker: WorkerProcess, seconds: float) -> AsyncIterator[tuple[int, str, int]]:
    """Poll the probes; yield the status and body of /readyz and the status of /livez."""
    until = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        ready, reason = await worker.get("/readyz")
        alive, _ = await worker.get("/livez")
        yield ready, reason, alive
        await asyncio.sleep(0.25)


def accepted_ids(scenario: Scenario) -> list[str]:
    return [id_ for id_, _, _ in scenario.commands if scenario.expected[id_] == "accepted"]


def has_events(world: World, scenario: Scenario) -> bool:
    return world.event_ids() >= set(accepted_ids(scenario))
