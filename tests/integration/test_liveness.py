"""Test what is told of a service that stands still: check, status, /readyz, metrics, the log.

RabbitMQ has its management API here, as it has in production.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from outplan.testing import Deployment
from outplan.testing.deployment import open_deployment
from outplan.testing.servers import Servers, reserve_ports
from outplan.testing.servers.processes import process_servers
from tests.faults.network.test_outages import raise_memory_alarm
from tests.integration.test_cli_check import Findings, check, problems
from tests.support.commands import run_command
from tests.support.worker_process import WorkerProcess, run_worker
from tests.support.world import EVENT_QUEUE, World, create_body, open_world

NO_MANAGEMENT = "http://guest:guest@127.0.0.1:1"


@pytest.fixture(scope="module")
def management_port() -> Iterator[int]:
    with reserve_ports(1) as (port,):
        yield port


@pytest.fixture(scope="module")
def servers(management_port: int) -> Iterator[Servers]:
    with process_servers(management_port=management_port) as servers:
        yield servers


@dataclass(frozen=True)
class ManagedDeployment(Deployment):
    """A deployment whose workers and commands know where the management API is."""

    management_url: str = ""

    def environment(self, **variables: str) -> dict[str, str]:
        return super().environment(**{"OUTPLAN_MANAGEMENT_URL": self.management_url, **variables})


@pytest.fixture
async def deployment(servers: Servers, management_port: int) -> AsyncIterator[Deployment]:
    async with open_deployment(servers, further_queues=[EVENT_QUEUE]) as found:
        url = f"http://guest:guest@127.0.0.1:{management_port}"
        yield ManagedDeployment(**asdict(found), management_url=url)


async def read_status(deployment: Deployment, **environment: Any) -> dict[str, Any]:
    async with run_command(deployment, "status", "--json", **environment) as process:
        await process.wait(60)
    status: dict[str, Any] = json.loads(process.out)
    return status


async def read_readiness(worker: WorkerProcess) -> tuple[int, dict[str, Any]]:
    status, text = await worker.get("/readyz")
    return status, json.loads(text)


async def wait_until_active(worker: WorkerProcess, queues: list[str]) -> None:
    async with asyncio.timeout(20):
        while (await read_readiness(worker))[1]["active_queues"] != queues:
            await asyncio.sleep(0.1)


def find_worker(found: Findings) -> tuple[str, str, str]:
    [finding] = [finding for point, finding in found.items() if point.startswith("worker ")]
    return finding


# --- active and standby ------------------------------------------------------------------------


async def test_log_readiness_and_metrics_tell_the_active_worker_from_the_standby(
    deployment: Deployment,
) -> None:
    main = f"{deployment.prefix}.commands"
    async with (
        run_worker(deployment, http=True) as first,
        run_worker(deployment, http=True) as second,
    ):
        ready = await first.wait_for_log("ready")
        assert ready["role"] == "active"
        assert ready["broker"].startswith("127.0.0.1:")
        assert ready["mongodb"].startswith("127.0.0.1:")
        assert ready["database"] == deployment.database
        assert ready["prefix"] == deployment.prefix
        assert ready["http_port"] == first.http_port
        assert "guest" not in json.dumps(first.log)
        assert (await second.wait_for_log("ready"))["role"] == "standby"

        # Also after the barriers, which ask RabbitMQ.
        await asyncio.sleep(4)
        for worker, role, active in ((first, "active", [main]), (second, "standby", [])):
            _, body = await read_readiness(worker)
            assert (body["role"], body["active_queues"]) == (role, active)
            metrics = (await worker.get("/metrics"))[1]
            assert f"outplan_queues_active {len(active)}.0" in metrics

        await first.stop()
        assert (await second.wait_for_log("queue_taken_over"))["queue"] == main
        assert (await read_readiness(second))[1]["role"] == "active"


async def test_an_idle_standby_notices_that_the_active_worker_was_killed(
    deployment: Deployment,
) -> None:
    main = f"{deployment.prefix}.commands"
    async with (
        run_worker(deployment) as first,
        run_worker(deployment, http=True) as second,
        run_worker(deployment, http=True) as third,
    ):
        await first.kill()
        # It has expired by then, and one of the others has asked.
        async with asyncio.timeout(20):
            while True:
                roles = [(await read_readiness(w))[1]["role"] for w in (second, third)]
                if "active" in roles:
                    break
                await asyncio.sleep(0.1)
        assert sorted(roles) == ["active", "standby"]
        assert len((await read_status(deployment))["workers"]) == 3
        assert [w["active_queues"] for w in (await read_status(deployment))["workers"]].count(
            [main]
        ) == 2  # the killed one's last announcement, and the new one's


async def test_a_standby_asks_through_a_memory_alarm_and_keeps_its_session(
    servers: Servers, deployment: Deployment
) -> None:
    async with run_worker(deployment) as first, run_worker(deployment, http=True) as second:
        async with raise_memory_alarm(servers.rabbitmq):
            # RabbitMQ reports the alarm once the first barrier has come.
            async with asyncio.timeout(30):
                while (await read_readiness(second))[0] != 503:
                    await asyncio.sleep(0.1)
            await asyncio.sleep(4)
        async with asyncio.timeout(30):
            while (await read_readiness(second))[0] != 200:
                await asyncio.sleep(0.1)
        assert "outplan_sessions_total 1.0" in (await second.get("/metrics"))[1]
        await first.stop()
        await wait_until_active(second, [f"{deployment.prefix}.commands"])
        events = [line["event"] for line in second.log]
        assert "session_reopened" not in events


async def test_two_workers_that_start_together_are_not_both_active(
    deployment: Deployment, world: World
) -> None:
    async with asyncio.TaskGroup() as group:
        stop = asyncio.Event()
        ready: asyncio.Queue[WorkerProcess] = asyncio.Queue()

        async def run() -> None:
            async with run_worker(deployment, http=True) as worker:
                ready.put_nowait(worker)
                await stop.wait()

        for _ in range(3):
            group.create_task(run())
        workers = [await ready.get() for _ in range(3)]
        async with asyncio.timeout(20):
            while True:
                roles = [(await read_readiness(w))[1]["role"] for w in workers]
                if sorted(roles) == ["active", "standby", "standby"]:
                    break
                await asyncio.sleep(0.1)
        stop.set()


async def test_a_moved_partition_is_active_at_its_new_owner(deployment: Deployment) -> None:
    partitions = {f"{deployment.prefix}.commands.{n}" for n in range(4)}
    main = f"{deployment.prefix}.commands"
    async with run_worker(deployment, http=True, OUTPLAN_PARTITIONS="4") as first:
        await wait_until_active(first, sorted({main, *partitions}))
        async with run_worker(deployment, http=True) as second:
            async with asyncio.timeout(20):
                while True:
                    shares = [
                        partitions.intersection((await read_readiness(w))[1]["active_queues"])
                        for w in (first, second)
                    ]
                    if [len(share) for share in shares] == [2, 2]:
                        break
                    await asyncio.sleep(0.1)
            assert shares[0] | shares[1] == partitions


# --- what stands still -------------------------------------------------------------------------


@pytest.mark.parametrize("management", [True, False])
async def test_a_frozen_worker_with_commands_in_hand_is_a_problem(
    deployment: Deployment, world: World, management: bool
) -> None:
    more = {} if management else {"OUTPLAN_MANAGEMENT_URL": NO_MANAGEMENT}
    async with (
        run_worker(deployment, OUTPLAN_HANG_SECONDS="0") as frozen,
        run_worker(deployment),
    ):
        await world.ask("outplan_create", create_body())
        frozen.signal(signal.SIGSTOP)
        for _ in range(3):
            await world.send("outplan_create", create_body())
        code, found = await check(deployment, **more)
        frozen.signal(signal.SIGCONT)
    assert code == 1
    [point] = [p for p in problems(found) if p.startswith("worker ")]
    assert "a consumer is left: it is frozen, or cannot reach MongoDB" in found[point][1]
    assert "kill it" in found[point][2]


async def test_a_worker_that_was_killed_is_no_problem_while_another_runs(
    deployment: Deployment, world: World
) -> None:
    async with run_worker(deployment) as killed, run_worker(deployment):
        await world.ask("outplan_create", create_body())
        await killed.kill()
        await world.ask("outplan_create", create_body())
        code, found = await check(deployment)
    assert (code, problems(found)) == (0, [])
    assert any("is gone" in text and "left no consumer" in text for _, text, _ in found.values())


async def test_a_full_subscriber_queue_is_named_by_readiness_check_and_status(
    deployment: Deployment, world: World
) -> None:
    full = f"{deployment.prefix}.full"
    arguments: dict[str, Any] = {"x-max-length": 2, "x-overflow": "reject-publish"}
    queue = await world.channel.declare_queue(full, durable=True, arguments=arguments)
    try:
        async with run_worker(deployment, http=True) as worker:
            # Bound to another exchange, which is bound to the events.
            relay = await world.channel.declare_exchange(f"{deployment.prefix}.relay", "fanout")
            await relay.bind(f"{deployment.prefix}.events", "#")
            await queue.bind(relay)
            for _ in range(5):
                await world.send("outplan_create", create_body())
            refusal = "it is full: 2 of 2 messages"
            async with asyncio.timeout(30):
                while True:
                    status, body = await read_readiness(worker)
                    if f"{full} ({refusal})" in body["troubles"].get("publishing", ""):
                        break
                    await asyncio.sleep(0.2)
            assert status == 503

            code, found = await check(deployment)
            assert code == 1
            assert "refuses events: it is full: 2 of 2" in found[f"subscriber queue {full}"][1]
            assert "publishing: Nacked" in find_worker(found)[1]
            seen = await read_status(deployment)
            [subscriber] = [q for q in seen["subscribers"] if q["name"] == full]
            assert subscriber["refusal"] == refusal
            [row] = seen["workers"]
            assert "Nacked" in row["troubles"]["publishing"]
            assert row["unacked"] > 0

            # Without the management API the worker's own announcement tells.
            code, found = await check(deployment, OUTPLAN_MANAGEMENT_URL=NO_MANAGEMENT)
            assert code == 1
            assert "publishing: Nacked" in find_worker(found)[1]
            assert found["subscriber queues"][0] == "not checked"
            assert "set OUTPLAN_MANAGEMENT_URL" in found["subscriber queues"][1]

            await queue.purge()
            await world.wait_for(lambda: len(world.events) >= 3)
    finally:
        await queue.delete(if_unused=False, if_empty=False)
        await world.channel.exchange_delete(f"{deployment.prefix}.relay")


async def test_nobody_who_consumes_is_told(deployment: Deployment, world: World) -> None:
    async with run_worker(deployment):
        async with asyncio.timeout(20):
            while not (await read_status(deployment))["workers"]:
                pass
    # Killed, it has left its announcement.
    code, found = await check(deployment)
    main = f"depth of {deployment.prefix}.commands"
    assert (code, found["workers"][0], found[main][0]) == (0, "warning", "warning")
    assert "no worker consumes" in found[main][1]

    await world.send("outplan_create", create_body())
    code, found = await check(deployment)
    assert (code, found[main][0]) == (1, "problem")
    seen = await read_status(deployment)
    assert [w["is_alive"] for w in seen["workers"]] == [False]
    assert (seen["queues"][0]["ready"], seen["queues"][0]["consumers"]) == (1, 0)


# --- status ------------------------------------------------------------------------------------


async def test_status_shows_workers_queues_rejected_commands_and_subscribers(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    await world.ask("outplan_create", create_body(), timestamp=datetime.now(UTC))
    main = f"{deployment.prefix}.commands"

    async with asyncio.timeout(20):  # The API's numbers are some seconds old.
        while not (seen := await read_status(deployment))["subscribers"]:
            pass
    assert (seen["partitions"], seen["phase"], seen["errors"]) == (1, "steady", {})
    [row] = seen["workers"]
    assert (row["role"], row["active_queues"], row["troubles"]) == ("active", [main], {})
    [queue] = seen["queues"]
    assert (queue["name"], queue["ready"], queue["unacked"]) == (main, 0, 0)
    assert queue["worker"] == row["name"]
    assert 0 <= queue["last_commit_seconds_ago"] < 20
    assert 0 <= queue["lag_seconds"] < 5
    assert {subscriber["name"] for subscriber in seen["subscribers"]} == {
        f"{deployment.prefix}.world"
    }

    async with run_command(deployment, "status", terminal=True) as process:
        assert await process.wait(30) == 0
    shown = process.out.decode()
    for text in ("WORKERS", row["name"], "active for 1 queue", "QUEUES", main, "last commit",
                 "REJECTED", "SUBSCRIBERS", f"{deployment.prefix}.world"):  # fmt: skip
        assert text in shown


async def test_status_counts_rejected_commands_by_code(deployment: Deployment) -> None:
    async with open_world(deployment, watch_rejected=False) as world, run_worker(deployment):
        for _ in range(2):
            await world.ask("outplan_create", create_body(dial_timeout=1))
        await world.ask("outplan_delete", {"id": "9f962a97-99e6-5306-b7e9-d211d662d311"})
        expected = {"total": 3, "by_code": {"invalid_command": 2, "not_found": 1}}
        async with asyncio.timeout(20):  # A reply may come before the copy.
            while (seen := await read_status(deployment))["rejected"] != expected:
                pass
        async with run_command(deployment, "status", terminal=True) as process:
            await process.wait(30)
    assert "3: 2 invalid_command, 1 not_found" in process.out.decode()
    assert all(queue["name"] != f"{deployment.prefix}.rejected" for queue in seen["queues"])


async def test_status_watch_goes_on_until_it_is_interrupted(
    deployment: Deployment, worker: WorkerProcess
) -> None:
    arguments = ("status", "--watch", "--interval", "200ms", "--json")
    async with run_command(deployment, *arguments) as process:
        await process.wait_for_output('"prefix"', times=3)
        assert await process.interrupt() == 130
    assert len([json.loads(line) for line in process.out.splitlines()]) >= 3


async def test_status_shows_the_rest_while_a_server_is_away(
    deployment: Deployment, worker: WorkerProcess
) -> None:
    async with run_command(
        deployment, "status", OUTPLAN_MONGO_URL="mongodb://127.0.0.1:1/?replicaSet=rs0"
    ) as process:
        assert await process.wait(60) == 1
    out = process.out.decode()
    assert "mongodb: " in out
    assert f"{deployment.prefix}.commands" in out
    async with run_command(deployment, "status", OUTPLAN_AMQP_URL="amqp://127.0.0.1:1/") as process:
        assert await process.wait(60) == 1
    out = process.out.decode()
    assert "rabbitmq: " in out
    assert "active for 1 queue" in out
