"""Servers that go away under load and come back: everything confirmed is done, nothing twice."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
import pytest

from outplan.contract.topology import topology
from outplan.errors import BrokerUnavailable
from outplan.rabbitmq import session as session_module
from outplan.testing.servers import Server, Servers
from tests.support.deployment import Deployment
from tests.support.scenario import Scenario, assert_events_and_documents, build_scenario
from tests.support.worker_process import WorkerProcess, run_worker, start_worker
from tests.support.world import open_world

LOST = (aio_pika.exceptions.AMQPError, ConnectionError, TimeoutError, RuntimeError)


async def publish_all(deployment: Deployment, scenario: Scenario, pace: float) -> None:
    """Send each command until the broker has confirmed it, whatever happens meanwhile."""
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
                    await exchange.publish(message, name)
                    waiting.pop(0)
                    await asyncio.sleep(pace)  # The load's own pace, so that it spans the outage.
        except LOST:
            await asyncio.sleep(0.1)


async def test_a_broker_that_does_not_answer_a_declaration_is_asked_again(
    servers: Servers, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats go on: nothing else would end the wait."""
    monkeypatch.setattr(session_module, "_START_SECONDS", 1)
    layout = topology(deployment.prefix)
    await asyncio.to_thread(servers.rabbitmq.ctl, "eval", "sys:suspend(ra_log_wal).")
    try:
        with pytest.raises(BrokerUnavailable, match="no answer in time"):
            async with session_module.open_session(deployment.amqp_url, layout, print):
                pass
    finally:
        await asyncio.to_thread(servers.rabbitmq.ctl, "eval", "sys:resume(ra_log_wal).")
    async with session_module.open_session(deployment.amqp_url, layout, print):
        pass


class Watch:
    """What /readyz and /livez said, each time they were asked."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self.ready: list[int] = []
        self.alive: list[int] = []
        self.troubles: set[str] = set()

    async def run(self) -> None:
        while True:
            status, text = await self._worker.get("/readyz")
            self.ready.append(status)
            self.troubles |= set(json.loads(text)["troubles"])
            self.alive.append((await self._worker.get("/livez"))[0])
            await asyncio.sleep(0.05)

    async def until_last(self, status: int) -> None:
        async with asyncio.timeout(60):
            while self.ready[-1:] != [status]:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def watched(worker: WorkerProcess) -> AsyncIterator[Watch]:
    watch = Watch(worker)
    watching = asyncio.create_task(watch.run())
    try:
        await watch.until_last(200)
        yield watch
        assert not watching.done(), "the health endpoints stopped answering"
    finally:
        watching.cancel()


async def assert_done_once(deployment: Deployment, scenario: Scenario) -> None:
    async with open_world(deployment) as world:
        await assert_events_and_documents(world, scenario, seconds=60)


@pytest.mark.parametrize("which", ["rabbitmq", "mongodb"])
@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_server_restarted_under_load_costs_nothing(
    servers: Servers, deployment: Deployment, which: str, how: str
) -> None:
    server: Server = getattr(servers, which)
    scenario = build_scenario(outplans=10, rounds=10)
    async with open_world(deployment):
        pass  # Its queue stays, and takes the events while nobody listens.
    async with run_worker(deployment, http=True) as worker, watched(worker) as watch:
        load = asyncio.create_task(publish_all(deployment, scenario, pace=0.004))
        await asyncio.sleep(0.5)  # Some of the load is through, most of it is not.
        # RabbitMQ writes a new quorum queue down only after a while, and a kill before loses it.
        await asyncio.to_thread(servers.rabbitmq.ctl, "eval", "[dets:sync(T) || T <- dets:all()].")
        await asyncio.to_thread(getattr(server, how))
        await watch.until_last(503)
        await asyncio.to_thread(server.start)
        await watch.until_last(200)
        await load
        await assert_done_once(deployment, scenario)

    assert set(watch.alive) == {200}
    assert watch.troubles >= {"broker" if which == "rabbitmq" else "store"}


@pytest.mark.parametrize("which", ["rabbitmq", "mongodb"])
async def test_a_server_that_is_not_there_yet_is_waited_for(
    servers: Servers, deployment: Deployment, which: str
) -> None:
    server: Server = getattr(servers, which)
    await asyncio.to_thread(server.stop)
    worker = await start_worker(deployment, http=True)
    try:
        waiting = await worker.wait_for_log("waiting")
        assert waiting["place"] == ("broker" if which == "rabbitmq" else "store")
        await asyncio.to_thread(server.start)
        await worker.wait_for_log("ready", seconds=60)
        assert await worker.stop() == 0
    finally:
        await asyncio.to_thread(server.start)
        await worker.kill()


async def test_a_memory_alarm_makes_it_unready_and_loses_nothing(
    servers: Servers, deployment: Deployment
) -> None:
    ctl = servers.rabbitmq.ctl
    async with open_world(deployment) as world, run_worker(deployment, http=True) as worker:
        await world.send("outplan_create", {"name": "wrong"})
        await world.wait_for(lambda: len(world.rejected) == 1)
        scenario = build_scenario(outplans=3, rounds=3)
        # In an alarm nobody can publish, so the commands come first, and the worker after it.
        worker.signal(signal.SIGSTOP)
        for id_, name, body in scenario.commands:
            await world.send(name, body, message_id=id_)
        await asyncio.to_thread(ctl, "set_vm_memory_high_watermark", "0.000001")
        worker.signal(signal.SIGCONT)
        try:
            async with watched_alarm(worker) as said:
                assert "alarm" in said
        finally:
            await asyncio.to_thread(ctl, "set_vm_memory_high_watermark", "0.4")
        await assert_events_and_documents(world, scenario)


@asynccontextmanager
async def watched_alarm(worker: WorkerProcess) -> AsyncIterator[str]:
    """The reason that /readyz gives once it is red, as is the gauge; /livez is green meanwhile."""
    async with asyncio.timeout(30):
        while (answer := await worker.get("/readyz"))[0] == 200:
            await asyncio.sleep(0.05)
    assert "outplan_ready 0.0" in (await worker.get("/metrics"))[1]
    assert (await worker.get("/livez"))[0] == 200
    yield answer[1]


async def test_a_subscribers_full_queue_holds_events_back_and_loses_none(
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
        await worker.wait_for_log("waiting")
        assert (await worker.get("/readyz"))[0] == 503
        seen: set[str | None] = set()
        async with asyncio.timeout(60):
            while seen < scenario.accepted:
                if message := await full.get(fail=False, no_ack=True):
                    seen.add(message.message_id)
        await full.delete(if_unused=False, if_empty=False)
        await assert_events_and_documents(world, scenario)


async def test_metrics_tell_what_was_done(deployment: Deployment) -> None:
    counted = 'outplan_commands_total{code="invalid_command",outcome="rejected"} 1.0'
    async with open_world(deployment) as world, run_worker(deployment, http=True) as worker:
        await world.ask("outplan_delete", {"id": "7"}, timestamp=1_700_000_000)
        async with asyncio.timeout(5):  # A command is counted when it is acknowledged.
            while counted not in (text := (await worker.get("/metrics"))[1]):
                await asyncio.sleep(0.02)

    assert "outplan_ready 1.0" in text
    assert "outplan_lag_seconds_count 1.0" in text
