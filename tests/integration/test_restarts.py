"""Stop servers under load and start them again: each confirmed command takes effect once."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
import pytest

from outplan.contract.slots import routing_key
from outplan.contract.topology import build_topology
from outplan.errors import BrokerUnavailable
from outplan.rabbitmq import session as session_module
from outplan.testing import Deployment
from outplan.testing.servers import Server, Servers
from tests.support.scenario import Scenario, assert_events_and_documents, build_scenario
from tests.support.sessions import consume_queues
from tests.support.worker_process import WorkerProcess, run_worker, start_worker
from tests.support.world import open_world

CONNECTION_ERRORS = (aio_pika.exceptions.AMQPError, ConnectionError, TimeoutError, RuntimeError)


async def publish_all(deployment: Deployment, scenario: Scenario, pace: float) -> None:
    """Publish the commands in order, retrying each one until the broker confirms it."""
    waiting = list(scenario.commands)
    while waiting:
        try:
            async with (
                asyncio.timeout(10),
                await aio_pika.connect(deployment.amqp_url) as connection,
            ):
                channel = await connection.channel()
                exchange = await channel.get_exchange(f"{deployment.prefix}.commands", ensure=False)
                while waiting:
                    id_, name, body = waiting[0]
                    message = aio_pika.Message(
                        json.dumps(body).encode(), message_id=id_, delivery_mode=2
                    )
                    await exchange.publish(message, routing_key(name, body["id"]))
                    waiting.pop(0)
                    await asyncio.sleep(pace)  # Spread the load over the whole outage.
        except CONNECTION_ERRORS:
            await asyncio.sleep(0.1)


async def test_a_declaration_without_an_answer_times_out(
    servers: Servers, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time out, because the broker still sends heartbeats and keeps the connection open."""
    monkeypatch.setattr(session_module, "_START_SECONDS", 1)
    layout = build_topology(deployment.prefix)
    await asyncio.to_thread(servers.rabbitmq.ctl, "eval", "sys:suspend(ra_log_wal).")
    try:
        with pytest.raises(BrokerUnavailable, match="no answer in time"):
            async with consume_queues(deployment.amqp_url, layout, [layout.main]):
                pass
    finally:
        await asyncio.to_thread(servers.rabbitmq.ctl, "eval", "sys:resume(ra_log_wal).")
    async with consume_queues(deployment.amqp_url, layout, [layout.main]):
        pass


class HealthPoller:
    """Poll /readyz and /livez, and keep every status and every failed component."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self.ready: list[int] = []
        self.alive: list[int] = []
        self.failed: set[str] = set()

    async def run(self) -> None:
        while True:
            status, text = await self._worker.get("/readyz")
            self.ready.append(status)
            self.failed |= set(json.loads(text)["troubles"])
            self.alive.append((await self._worker.get("/livez"))[0])
            await asyncio.sleep(0.05)

    async def wait_for_status(self, status: int) -> None:
        async with asyncio.timeout(60):
            while self.ready[-1:] != [status]:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def poll_health(worker: WorkerProcess) -> AsyncIterator[HealthPoller]:
    health = HealthPoller(worker)
    polling = asyncio.create_task(health.run())
    try:
        await health.wait_for_status(200)
        yield health
        assert not polling.done(), "the health endpoints stopped answering"
    finally:
        polling.cancel()


async def assert_each_command_took_effect_once(deployment: Deployment, scenario: Scenario) -> None:
    async with open_world(deployment) as world:
        await assert_events_and_documents(world, scenario, seconds=60)


@pytest.mark.parametrize("which", ["rabbitmq", "mongodb"])
@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_server_restart_under_load_loses_and_repeats_no_command(
    servers: Servers, deployment: Deployment, which: str, how: str
) -> None:
    server: Server = getattr(servers, which)
    scenario = build_scenario(outplans=10, rounds=10)
    async with open_world(deployment):
        pass  # Its durable queue keeps the events until it is opened again.
    async with run_worker(deployment, http=True) as worker, poll_health(worker) as health:
        load = asyncio.create_task(publish_all(deployment, scenario, pace=0.004))
        await asyncio.sleep(0.5)  # Let a part of the load through.
        # RabbitMQ writes a new quorum queue to disk after a second; a kill before that loses it.
        await asyncio.to_thread(servers.rabbitmq.ctl, "eval", "[dets:sync(T) || T <- dets:all()].")
        await asyncio.to_thread(getattr(server, how))
        await health.wait_for_status(503)
        await asyncio.to_thread(server.start)
        await health.wait_for_status(200)
        await load
        await assert_each_command_took_effect_once(deployment, scenario)

    assert set(health.alive) == {200}
    assert health.failed >= {"broker" if which == "rabbitmq" else "store"}


@pytest.mark.parametrize("which", ["rabbitmq", "mongodb"])
async def test_the_worker_waits_for_a_missing_server(
    servers: Servers, deployment: Deployment, which: str
) -> None:
    server: Server = getattr(servers, which)
    await asyncio.to_thread(server.stop)
    worker = await start_worker(deployment, http=True)
    try:
        waiting = await worker.wait_for_log("component_failed")
        assert waiting["component"] == ("broker" if which == "rabbitmq" else "store")
        await asyncio.to_thread(server.start)
        await worker.wait_for_log("ready", seconds=60)
        assert await worker.stop() == 0
    finally:
        await asyncio.to_thread(server.start)
        await worker.kill()


async def test_a_memory_alarm_makes_the_worker_unready_and_loses_nothing(
    servers: Servers, deployment: Deployment
) -> None:
    ctl = servers.rabbitmq.ctl
    async with open_world(deployment) as world, run_worker(deployment, http=True) as worker:
        await world.send("outplan_create", {"name": "wrong"})
        await world.wait_for(lambda: len(world.rejected) == 1)
        scenario = build_scenario(outplans=3, rounds=3)
        # Nobody can publish in an alarm, so publish first and let the worker run afterwards.
        worker.signal(signal.SIGSTOP)
        for id_, name, body in scenario.commands:
            await world.send(name, body, message_id=id_)
        await asyncio.to_thread(ctl, "set_vm_memory_high_watermark", "0.000001")
        worker.signal(signal.SIGCONT)
        try:
            assert "alarm" in await wait_for_alarm(worker)
        finally:
            await asyncio.to_thread(ctl, "set_vm_memory_high_watermark", "0.4")
        await assert_events_and_documents(world, scenario)


async def wait_for_alarm(worker: WorkerProcess) -> str:
    """Wait until /readyz fails, check outplan_ready and /livez, and return the body of /readyz."""
    async with asyncio.timeout(30):
        while (answer := await worker.get("/readyz"))[0] == 200:
            await asyncio.sleep(0.05)
    assert "outplan_ready 0.0" in (await worker.get("/metrics"))[1]
    assert (await worker.get("/livez"))[0] == 200
    return answer[1]


async def test_a_full_subscriber_queue_delays_events_and_loses_none(
    deployment: Deployment,
) -> None:
    async with open_world(deployment) as world, run_worker(deployment, http=True) as worker:
        full = await world.channel.declare_queue(
            f"{deployment.prefix}.full",
            arguments={"x-max-length": 1, "x-overflow": "reject-publish"},
        )
        await full.bind(f"{deployment.prefix}.events", "#")
        scenario = build_scenario(outplans=2, rounds=1)
        for id_, name, body in scenario.commands:
            await world.send(name, body, message_id=id_)
        await worker.wait_for_log("component_failed")
        assert (await worker.get("/readyz"))[0] == 503
        received: set[str | None] = set()
        async with asyncio.timeout(60):
            while received < scenario.accepted:
                if message := await full.get(fail=False, no_ack=True):
                    received.add(message.message_id)
        await full.delete(if_unused=False, if_empty=False)
        await assert_events_and_documents(world, scenario)


async def test_metrics_count_commands_by_outcome(deployment: Deployment) -> None:
    counted = 'outplan_commands_total{code="invalid_command",outcome="rejected"} 1.0'
    async with open_world(deployment) as world, run_worker(deployment, http=True) as worker:
        await world.ask("outplan_delete", {"id": "7"}, timestamp=1_700_000_000)
        async with asyncio.timeout(5):  # The worker counts a command when it acks it.
            while counted not in (text := (await worker.get("/metrics"))[1]):
                await asyncio.sleep(0.02)

    assert "outplan_ready 1.0" in text
    assert "outplan_lag_seconds_count 1.0" in text
