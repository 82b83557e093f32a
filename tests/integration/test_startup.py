"""Test startup errors that an operator must fix: one line of advice and an exit code."""

import aio_pika
import pytest
from pymongo import MongoClient
from yarl import URL

from outplan.testing import Deployment
from tests.support.worker_process import run_worker, start_worker
from tests.support.world import World, create_body


async def assert_fails(deployment: Deployment, code: int, *words: str, **environment: str) -> None:
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
async def test_an_invalid_setting_is_named(deployment: Deployment, name: str, value: str) -> None:
    await assert_fails(deployment, 2, name, **{name: value})


async def test_an_invalid_setting_error_hides_the_password(deployment: Deployment) -> None:
    worker = await start_worker(deployment, OUTPLAN_AMQP_URL="http://user:secret@localhost/")
    await worker.wait()
    assert "secret" not in worker.errors


async def test_an_unknown_setting_is_logged(deployment: Deployment) -> None:
    async with run_worker(deployment, OUTPLAN_BATCHSIZE="10") as worker:
        assert (await worker.wait_for_log("variable_ignored"))["name"] == "OUTPLAN_BATCHSIZE"


async def test_wrong_rabbitmq_credentials_are_reported(deployment: Deployment) -> None:
    url = str(URL(deployment.amqp_url).with_user("guest").with_password("wrong"))
    await assert_fails(deployment, 1, "credentials", "OUTPLAN_AMQP_URL", OUTPLAN_AMQP_URL=url)


async def test_a_missing_virtual_host_is_reported(deployment: Deployment) -> None:
    url = str(URL(deployment.amqp_url).with_path("/nowhere"))
    await assert_fails(deployment, 1, "virtual host", OUTPLAN_AMQP_URL=url)


async def test_wrong_mongodb_credentials_are_reported(deployment: Deployment) -> None:
    url = deployment.mongo_url.replace("mongodb://", "mongodb://user:wrong@")
    await assert_fails(deployment, 1, "OUTPLAN_MONGO_URL", OUTPLAN_MONGO_URL=url)


async def test_a_queue_with_other_arguments_is_reported(deployment: Deployment) -> None:
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(f"{deployment.prefix}.commands", durable=True)
        await assert_fails(deployment, 1, f"queue {deployment.prefix}.commands", "other arguments")


async def test_an_exchange_of_another_type_is_reported(deployment: Deployment) -> None:
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_exchange(f"{deployment.prefix}.events", "fanout", durable=True)
        await assert_fails(deployment, 1, f"exchange {deployment.prefix}.events", "other arguments")


async def test_a_port_in_use_is_reported(deployment: Deployment) -> None:
    async with run_worker(deployment, http=True) as worker:
        await assert_fails(
            deployment, 1, "OUTPLAN_HTTP_PORT", OUTPLAN_HTTP_PORT=str(worker.http_port)
        )


@pytest.mark.parametrize("query", ["", "?replicaSet=rs0"])
async def test_a_mongodb_that_is_not_a_replica_set_is_reported(
    deployment: Deployment, standalone_mongod: int, query: str
) -> None:
    url = f"mongodb://127.0.0.1:{standalone_mongod}/{query}"
    await assert_fails(deployment, 1, "replica set", "--replSet", OUTPLAN_MONGO_URL=url)


async def test_a_replica_set_with_another_name_is_reported(deployment: Deployment) -> None:
    url = deployment.mongo_url.replace("replicaSet=rs0", "replicaSet=other")
    await assert_fails(deployment, 1, "replica set", "rs0", OUTPLAN_MONGO_URL=url)


async def test_an_index_with_other_keys_is_reported(deployment: Deployment) -> None:
    with MongoClient[dict[str, object]](deployment.mongo_url) as client:
        events = client[deployment.database]["outplan_events"]
        events.create_index([("outplan_id", 1)], name="outplan_version")
    await assert_fails(deployment, 1, "outplan_version", "drop that index")


async def test_ready_is_logged_once_and_stderr_is_empty(
    deployment: Deployment, world: World
) -> None:
    async with run_worker(deployment) as worker:
        await world.ask("outplan_create", create_body())
        assert await worker.stop() == 0

    assert [line["event"] for line in worker.log].count("ready") == 1
    assert worker.errors == ""
