"""What only a person can mend is one clear line that says what to do, and an exit code."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import aio_pika
import pytest
from pymongo import MongoClient
from yarl import URL

from outplan.testing.processes import find_programs
from tests.support.deployment import Deployment
from tests.support.worker_process import free_port, run_worker, start_worker
from tests.support.world import World, create_body


async def fails(deployment: Deployment, code: int, *words: str, **environment: str) -> None:
    worker = await start_worker(deployment, module="outplan", http=False, **environment)
    assert await worker.wait() == code, worker.log
    assert worker.errors.count("\n") == 1, worker.errors
    assert worker.errors.startswith("outplan: ")
    for word in words:
        assert word in worker.errors


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OUTPLAN_BATCH_SIZE", "0"),
        ("OUTPLAN_BATCH_SIZE", "many"),
        ("OUTPLAN_HTTP_PORT", "70000"),
        ("OUTPLAN_AMQP_URL", "http://user:secret@localhost/"),
        ("OUTPLAN_MONGO_URL", "localhost:27017"),
        ("OUTPLAN_PARTITIONS", "0"),
        ("OUTPLAN_LOG_FORMAT", "xml"),
        ("OUTPLAN_PREFIX", "a b"),
    ],
)
async def test_a_wrong_setting_is_named(deployment: Deployment, name: str, value: str) -> None:
    await fails(deployment, 2, name, **{name: value})


async def test_a_wrong_setting_does_not_give_a_password_away(deployment: Deployment) -> None:
    worker = await start_worker(deployment, OUTPLAN_AMQP_URL="http://user:secret@localhost/")
    await worker.wait()
    assert "secret" not in worker.errors


async def test_a_misspelt_setting_is_warned_of(deployment: Deployment) -> None:
    async with run_worker(deployment, OUTPLAN_BATCHSIZE="10") as worker:
        assert (await worker.wait_for_log("unknown variable"))["name"] == "OUTPLAN_BATCHSIZE"


async def test_wrong_credentials_for_rabbitmq(deployment: Deployment) -> None:
    url = str(URL(deployment.amqp_url).with_user("guest").with_password("wrong"))
    await fails(deployment, 1, "credentials", "OUTPLAN_AMQP_URL", OUTPLAN_AMQP_URL=url)


async def test_a_virtual_host_that_is_not_there(deployment: Deployment) -> None:
    url = str(URL(deployment.amqp_url).with_path("/nowhere"))
    await fails(deployment, 1, "virtual host", OUTPLAN_AMQP_URL=url)


async def test_wrong_credentials_for_mongodb(deployment: Deployment) -> None:
    url = deployment.mongo_url.replace("mongodb://", "mongodb://user:wrong@")
    await fails(deployment, 1, "OUTPLAN_MONGO_URL", OUTPLAN_MONGO_URL=url)


async def test_a_queue_that_exists_with_other_arguments(deployment: Deployment) -> None:
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(f"{deployment.prefix}.commands", durable=True)
        await fails(deployment, 1, f"queue {deployment.prefix}.commands", "other arguments")


async def test_an_exchange_that_exists_with_another_type(deployment: Deployment) -> None:
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_exchange(f"{deployment.prefix}.events", "fanout", durable=True)
        await fails(deployment, 1, f"exchange {deployment.prefix}.events", "other arguments")


async def test_a_port_that_is_taken(deployment: Deployment) -> None:
    async with run_worker(deployment, http=True) as worker:
        await fails(deployment, 1, "OUTPLAN_HTTP_PORT", OUTPLAN_HTTP_PORT=str(worker.http_port))


@pytest.fixture
def standalone(tmp_path: Path) -> Iterator[int]:
    """A mongod that is no replica set."""
    port = free_port()
    process = subprocess.Popen(
        [find_programs().mongod, "--dbpath", tmp_path, "--port", str(port)],
        stdout=subprocess.DEVNULL,
    )
    with MongoClient[dict[str, object]](f"mongodb://127.0.0.1:{port}/") as client:
        client.admin.command("ping")
    yield port
    process.kill()
    process.wait()


@pytest.mark.parametrize("query", ["", "?replicaSet=rs0"])
async def test_a_mongodb_that_is_no_replica_set(
    deployment: Deployment, standalone: int, query: str
) -> None:
    url = f"mongodb://127.0.0.1:{standalone}/{query}"
    await fails(deployment, 1, "replica set", "--replSet", OUTPLAN_MONGO_URL=url)


async def test_a_replica_set_of_another_name(deployment: Deployment) -> None:
    url = deployment.mongo_url.replace("replicaSet=rs0", "replicaSet=other")
    await fails(deployment, 1, "replica set", "rs0", OUTPLAN_MONGO_URL=url)


async def test_an_index_of_the_same_name_that_is_another(deployment: Deployment) -> None:
    with MongoClient[dict[str, object]](deployment.mongo_url) as client:
        events = client[deployment.database]["outplan_events"]
        events.create_index([("outplan_id", 1)], name="outplan_version")
    await fails(deployment, 1, "outplan_version", "drop that index")


async def test_it_prints_ready_once_and_in_one_line(deployment: Deployment, world: World) -> None:
    async with run_worker(deployment) as worker:
        await world.ask("outplan_create", create_body())
        assert await worker.stop() == 0

    assert [line["event"] for line in worker.log].count("ready") == 1
    assert worker.errors == ""
