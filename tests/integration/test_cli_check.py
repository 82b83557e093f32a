"""Run ``outplan check`` on real servers that are in order, and that are not."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import aio_pika
import pytest
from aiormq.exceptions import ChannelNotFoundEntity
from pymongo import AsyncMongoClient
from yarl import URL

from outplan.contract.topology import build_topology
from outplan.mongodb.validators import SEEN_KEYS, VERSION_KEYS, build_collection_options
from outplan.testing import Deployment
from tests.support.commands import run_command
from tests.support.worker_process import WorkerProcess, run_worker
from tests.support.world import World, create_body

Findings = dict[str, tuple[str, str, str]]


async def check(deployment: Deployment, **environment: Any) -> tuple[int, Findings]:
    """Return the exit code, and by point: state, text, remedy."""
    async with run_command(deployment, "check", "--json", **environment) as process:
        code = await process.wait(60)
    assert process.err == b""
    found = [json.loads(line) for line in process.out.splitlines()]
    assert len({f["point"] for f in found}) == len(found)
    assert all(bool(f["remedy"]) is (f["state"] in ("warning", "problem")) for f in found)
    return code, {f["point"]: (f["state"], f["text"], f["remedy"]) for f in found}


def problems(findings: Findings) -> list[str]:
    return [point for point, (state, _, _) in findings.items() if state == "problem"]


async def test_no_problem_is_found_while_a_worker_runs_and_the_worker_notices_nothing(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    await world.ask("outplan_create", create_body())
    code, found = await check(deployment)

    assert code == 0
    unknown = [point for point, (state, _, _) in found.items() if state != "ok"]
    assert unknown == ["subscriber queues"]  # RabbitMQ has no management API here.
    assert found[f"queue {deployment.prefix}.commands"][1] == "declared as a worker does"
    assert found[f"depth of {deployment.prefix}.commands"][1] == "0 waiting, 1 consumer"
    assert found["index outplan_version"][1] == "unique on outplan_id and version"
    assert found["index seen_1 of outplan_workers"][1] == "workers are forgotten after 3,600 s"
    assert found["mongodb driver"][1] == f"motor {version('motor')} on PyMongo {version('pymongo')}"
    assert found["layout"][1] == "1 partition, phase steady, generation 1"
    [share] = [text for point, (_, text, _) in found.items() if point.startswith("worker ")]
    assert share.startswith(f"consumes {deployment.prefix}.commands; active for 1 queue, ")
    assert "session 1" in found[f"fence {deployment.prefix}.commands"][1]
    assert (await world.ask("outplan_create", create_body()))["status"] == "accepted"
    assert [line["event"] for line in worker.log].count("ready") == 1
    assert len(world.events) == 2


@pytest.mark.parametrize("partitions", ["1", "3"])
async def test_no_problem_is_found_before_the_first_worker_and_nothing_is_created(
    deployment: Deployment, partitions: str
) -> None:
    code, found = await check(deployment, OUTPLAN_PARTITIONS=partitions)

    assert (code, problems(found)) == (0, [])
    assert (
        found[f"queue {deployment.prefix}.rejected"][1]
        == "does not exist yet; a worker declares it"
    )
    assert found["collection outplans"][1] == "does not exist yet; a worker creates it"
    assert found["layout"][1].startswith("no worker has started here yet")
    assert f"lays out {partitions} partition" in found["layout"][1]
    layout = build_topology(deployment.prefix, int(partitions))
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        for queue in layout.queues:
            with pytest.raises(ChannelNotFoundEntity):
                await (await connection.channel()).get_queue(queue.name)
        for exchange in layout.exchanges:
            with pytest.raises(ChannelNotFoundEntity):
                await (await connection.channel()).get_exchange(exchange.name)
    async with AsyncMongoClient[dict[str, Any]](deployment.mongo_url) as mongo:
        assert await mongo[deployment.database].list_collection_names() == []


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("OUTPLAN_BATCH_SIZE", "0"), ("OUTPLAN_HTTP_PORT", "x"), ("OUTPLAN_LOG_LEVEL", "loud")],
)
async def test_each_wrong_setting_is_reported_and_hides_nothing_else(
    deployment: Deployment, name: str, value: str
) -> None:
    code, found = await check(deployment, **{name: value, "OUTPLAN_DRAIN_SECONDS": "-1"})
    assert code == 2
    assert problems(found) == [f"setting {name}", "setting OUTPLAN_DRAIN_SECONDS"]
    assert found["rabbitmq"][0] == found["mongodb"][0] == "ok"


async def test_a_server_whose_settings_are_wrong_is_not_checked(deployment: Deployment) -> None:
    url = "http://user:secret@localhost/"
    code, found = await check(deployment, OUTPLAN_AMQP_URL=url)
    assert code == 2
    assert found["rabbitmq"] == ("not checked", "correct OUTPLAN_AMQP_URL first", "")
    assert found["mongodb"][0] == "ok"
    assert "secret" not in str(found)


async def test_a_misspelt_setting_is_a_problem_and_an_unrelated_one_is_only_mentioned(
    deployment: Deployment,
) -> None:
    code, found = await check(deployment, OUTPLAN_BATCHSIZE="9", OUTPLAN_SERVICE_HOST="10.0.0.1")
    assert (code, problems(found)) == (1, ["setting OUTPLAN_BATCHSIZE"])
    assert found["setting OUTPLAN_BATCHSIZE"][2] == "did you mean OUTPLAN_BATCH_SIZE?"
    assert found["setting OUTPLAN_SERVICE_HOST"][0] == "not checked"


# --- servers that are away or unsuitable --------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "point"),
    [
        (lambda url: url.with_port(1), "rabbitmq"),
        (lambda url: url.with_password("wrong"), "rabbitmq credentials"),
        (lambda url: url.with_path("/nowhere"), "rabbitmq virtual host"),
    ],
)
async def test_a_wrong_amqp_url_is_reported_and_mongodb_is_checked(
    deployment: Deployment, change: Any, point: str
) -> None:
    code, found = await check(deployment, OUTPLAN_AMQP_URL=str(change(URL(deployment.amqp_url))))
    assert (code, problems(found)) == (1, [point])
    assert "OUTPLAN_AMQP_URL" in found[point][2]
    assert found["rabbitmq version"][0] == "not checked"
    assert found["mongodb majority"][0] == "ok"
    assert "wrong" not in str(found)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mongodb://127.0.0.1:1/?replicaSet=rs0", "no primary within 4 s"),
        ("mongodb://u:p%@127.0.0.1/", "percent-encoded"),
    ],
)
async def test_a_mongodb_that_does_not_answer_is_reported_and_rabbitmq_is_checked(
    deployment: Deployment, url: str, words: str
) -> None:
    code, found = await check(deployment, OUTPLAN_MONGO_URL=url)
    assert (code, problems(found)) == (1, ["mongodb"])
    assert words in found["mongodb"][1]
    assert found["mongodb version"][0] == found["layout"][0] == "not checked"
    assert found["rabbitmq version"][0] == "ok"
    assert found["stale queues"] == ("not checked", "the layout is unknown", "")


async def test_an_option_that_the_driver_does_not_know_is_a_problem(deployment: Deployment) -> None:
    url = f"{deployment.mongo_url}&readConcernLvel=majority"
    code, found = await check(deployment, OUTPLAN_MONGO_URL=url)
    assert (code, problems(found)) == (1, ["mongodb url"])
    assert "readconcernlvel" in found["mongodb url"][1].lower()
    assert found["mongodb"][0] == "ok"


@pytest.mark.parametrize("query", ["", "?replicaSet=rs0"])
async def test_a_mongodb_without_a_replica_set_is_reported(
    deployment: Deployment, standalone_mongod: int, query: str
) -> None:
    url = f"mongodb://127.0.0.1:{standalone_mongod}/{query}"
    code, found = await check(deployment, OUTPLAN_MONGO_URL=url)
    assert (code, problems(found)) == (1, ["mongodb"])
    assert "replica set" in found["mongodb"][1] + found["mongodb"][2]


async def test_wrong_credentials_for_mongodb_are_reported(deployment: Deployment) -> None:
    url = deployment.mongo_url.replace("mongodb://", "mongodb://user:hidden@")
    code, found = await check(deployment, OUTPLAN_MONGO_URL=url)
    assert (code, problems(found)) == (1, ["mongodb"])
    assert "password" in found["mongodb"][2]
    assert "hidden" not in str(found)


# --- drift -------------------------------------------------------------------------------------


async def test_queues_and_exchanges_that_differ_are_reported_with_the_difference(
    deployment: Deployment,
) -> None:
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(f"{deployment.prefix}.commands", durable=True)
        await channel.declare_exchange(f"{deployment.prefix}.events", "fanout", durable=True)
        code, found = await check(deployment)

    queue, exchange = f"queue {deployment.prefix}.commands", f"exchange {deployment.prefix}.events"
    assert (code, problems(found)) == (1, [exchange, queue])
    assert "received 'topic' but current is 'fanout'" in found[exchange][1]
    assert "x-dead-letter-exchange" in found[queue][1]
    assert "delete it once it is empty" in found[queue][2]


async def test_commands_waiting_without_a_worker_are_reported(
    deployment: Deployment, world: World
) -> None:
    await world.send("outplan_create", create_body())
    code, found = await check(deployment)
    point = f"depth of {deployment.prefix}.commands"
    assert (code, problems(found)) == (1, [point])
    assert found[point][1:] == (
        "1 waiting, 0 consumers",
        "no worker consumes: start one with outplan run",
    )
    assert await world.count_waiting() == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"validator": {}}, "the validator differs from the worker's"),
        ({"validationAction": "warn"}, "wrong documents get in"),
        ({"validationLevel": "off"}, "wrong documents get in"),
    ],
)
async def test_validators_that_differ_are_reported(
    deployment: Deployment, world: World, change: dict[str, Any], words: str
) -> None:
    async with run_worker(deployment):
        await world.database.command("collMod", "outplan_events", **change)
        code, found = await check(deployment)
    assert (code, problems(found)) == (1, ["collection outplan_events"])
    assert words in found["collection outplan_events"][1]


@pytest.mark.parametrize(
    ("collection", "keys", "other", "words"),
    [
        ("outplan_events", VERSION_KEYS, {"name": "outplan_version"}, "no options"),
        ("outplan_events", VERSION_KEYS[:1], {"name": "outplan_version", "unique": True}, "{'ou"),
        ("outplan_events", VERSION_KEYS[::-1], {"name": "outplan_version", "unique": True}, "{'ve"),
        ("outplan_events", VERSION_KEYS, {"name": "by_hand", "unique": True}, "called by_hand"),
        ("outplan_workers", SEEN_KEYS, {}, "no options"),
        ("outplan_workers", SEEN_KEYS, {"expireAfterSeconds": 60}, "'expireAfterSeconds': 60"),
    ],
)
async def test_an_index_that_differs_is_reported(
    deployment: Deployment,
    world: World,
    collection: str,
    keys: Sequence[tuple[str, int]],
    other: dict[str, Any],
    words: str,
) -> None:
    await world.database.create_collection(collection, **build_collection_options()[collection])
    await world.database[collection].create_index(list(keys), **other)
    code, found = await check(deployment)
    points = {"outplan_events": "outplan_version", "outplan_workers": "seen_1 of outplan_workers"}
    point = f"index {points[collection]}"
    assert (code, problems(found)) == (1, [point])
    assert words in found[point][1]


async def test_a_missing_index_is_no_problem(deployment: Deployment, world: World) -> None:
    await world.database.create_collection(
        "outplan_events", **build_collection_options()["outplan_events"]
    )
    code, found = await check(deployment)
    assert code == 0
    assert found["index outplan_version"][1] == "does not exist yet; a worker creates it"


async def test_a_terminal_shows_a_coloured_line_for_each_point_with_the_remedy_below(
    deployment: Deployment,
) -> None:
    variables: dict[str, Any] = {
        "OUTPLAN_MONGO_URL": "mongodb://127.0.0.1:1/",
        "OUTPLAN_BATCHSIZE": "1",
    }
    async with run_command(deployment, "check", terminal=True, **variables) as process:
        assert await process.wait() == 1
    text = process.out.decode()
    assert "\x1b[31mproblem" in text
    assert "→ did you mean OUTPLAN_BATCH_SIZE?" in text
    async with run_command(deployment, "check", terminal=True, NO_COLOR="1") as process:
        assert await process.wait() == 0
    assert b"\x1b" not in process.out
