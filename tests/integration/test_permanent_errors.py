"""Stop a worker with one line for what only a person can mend, and wait for anything else."""

import asyncio
from pathlib import Path

import aio_pika
import pytest
from pymongo import MongoClient
from yarl import URL

from outplan.testing import Deployment
from outplan.testing.servers import Servers, reserve_ports
from tests.integration.test_startup import assert_fails
from tests.support.plain_words import find_foreign_words
from tests.support.strange_servers import make_untrusted_context, serve
from tests.support.worker_process import WorkerProcess, start_worker

LONGEST_REASON = 400


async def wait_for_failure(worker: WorkerProcess, component: str) -> str:
    """Return why the worker waits, as its log says; it must not end."""
    line = await worker.wait_for_log_line(
        lambda line: line["event"] == "component_failed" and line["component"] == component, 20
    )
    detail = str(line["detail"])
    assert not find_foreign_words(detail)
    assert len(detail) < LONGEST_REASON
    assert worker.process.returncode is None
    return detail


# --- MongoDB -----------------------------------------------------------------------------------


async def test_a_database_that_differs_only_in_case_is_reported(deployment: Deployment) -> None:
    with MongoClient[dict[str, object]](deployment.mongo_url) as client:
        other = client[deployment.database.upper()]
        other["things"].insert_one({})
        try:
            await assert_fails(deployment, 1, "13297", "OUTPLAN_MONGO_DATABASE")
        finally:
            client.drop_database(other)


async def test_a_collection_that_is_a_view_is_reported(deployment: Deployment) -> None:
    with MongoClient[dict[str, object]](deployment.mongo_url) as client:
        database = client[deployment.database]
        database["things"].insert_one({})
        database.command("create", "outplan_events", viewOn="things", pipeline=[])
    await assert_fails(deployment, 1, "OUTPLAN_MONGO_DATABASE", "view")


async def test_two_stored_events_of_one_version_are_reported(deployment: Deployment) -> None:
    with MongoClient[dict[str, object]](deployment.mongo_url) as client:
        events = client[deployment.database]["outplan_events"]
        events.insert_many([{"outplan_id": "one", "version": 1} for _ in range(2)])
    await assert_fails(deployment, 1, "two events of one version", "remove one")


async def test_a_certificate_that_nobody_signed_is_reported(
    deployment: Deployment, tmp_path: Path
) -> None:
    async with serve(None, context=make_untrusted_context(tmp_path)) as port:
        url = f"mongodb://127.0.0.1:{port}/?replicaSet=rs0&tls=true"
        await assert_fails(deployment, 1, "not trusted", "tlsCAFile", OUTPLAN_MONGO_URL=url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mongodb://server:99999/", "a port that is no number"),
        ("mongodb://server/?tls=true&tlsCAFile=/no/such.pem", "/no/such.pem"),
        ("mongodb://user:p@ss/word@server/", "percent-encode"),
    ],
)
async def test_a_url_that_cannot_be_used_is_wrong_in_one_line(
    deployment: Deployment, url: str, words: str
) -> None:
    await assert_fails(deployment, 2, "OUTPLAN_MONGO_URL", words, OUTPLAN_MONGO_URL=url)


async def test_a_worker_waits_for_a_mongodb_that_is_not_there_and_says_so_briefly(
    deployment: Deployment,
) -> None:
    with reserve_ports(1) as (port,):
        pass
    url = f"mongodb://127.0.0.1:{port}/?replicaSet=rs0&serverSelectionTimeoutMS=500"
    worker = await start_worker(deployment, http=True, OUTPLAN_MONGO_URL=url)
    try:
        detail = await wait_for_failure(worker, "store")
        assert detail.startswith("no primary answers: ")
        assert f"127.0.0.1:{port}" in detail
        status, text = await worker.get("/readyz")
        assert status == 503
        assert "no primary answers" in text
        assert not find_foreign_words(text)
        assert len(text) < 2 * LONGEST_REASON
    finally:
        await worker.kill()


# --- RabbitMQ ----------------------------------------------------------------------------------


async def test_a_worker_waits_for_a_queue_that_another_connection_holds_alone(
    deployment: Deployment,
) -> None:
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(f"{deployment.prefix}.rejected", exclusive=True)
        worker = await start_worker(deployment)
        try:
            assert "another connection holds it alone" in await wait_for_failure(worker, "broker")
        finally:
            await worker.kill()


async def test_limits_of_a_virtual_host(servers: Servers, deployment: Deployment) -> None:
    """Wait while there are too many connections; stop where no queue may be declared."""
    vhost, ctl = f"{deployment.prefix}-full", servers.rabbitmq.ctl
    url = str(URL(deployment.amqp_url).with_path(f"/{vhost}"))
    await asyncio.to_thread(ctl, "add_vhost", vhost)
    try:
        await assert_fails(
            deployment, 1, "refused for user", "grant the user", OUTPLAN_AMQP_URL=url
        )
        await asyncio.to_thread(ctl, "set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
        await asyncio.to_thread(ctl, "set_vhost_limits", "-p", vhost, '{"max-connections": 0}')
        worker = await start_worker(deployment, OUTPLAN_AMQP_URL=url)
        try:
            assert "raise the limit" in await wait_for_failure(worker, "broker")
        finally:
            await worker.kill()
        await asyncio.to_thread(ctl, "set_vhost_limits", "-p", vhost, '{"max-queues": 0}')
        await assert_fails(
            deployment, 1, "cannot be declared", "set_vhost_limits", OUTPLAN_AMQP_URL=url
        )
    finally:
        await asyncio.to_thread(ctl, "delete_vhost", vhost)
