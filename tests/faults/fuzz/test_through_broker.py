"""Check a fuzz run through RabbitMQ, and MongoDB's handling of long texts."""

import random
from collections.abc import AsyncIterator

import orjson
import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from outplan.contract.fields import MAX_EMAIL
from outplan.contract.messages import Event
from outplan.domain.decider import decide
from outplan.domain.records import Record
from outplan.mongodb.documents import build_event_document
from outplan.mongodb.validators import EVENTS, build_validators
from outplan.testing import Deployment
from outplan.testing.servers import Servers
from tests.faults.fuzz.readers_through_broker import run_readers
from tests.faults.fuzz.through_broker import run_through_broker
from tests.support.raw_message import RawMessage, encode_content_header
from tests.support.raw_publisher import open_raw_publisher
from tests.support.samples import NOW, create_body, request
from tests.support.world import Document

COUNT = 1_000
# The worker's allowed gain during warm-up; an outplan leaked for each message would exceed it.
GROWTH = 16 * 2**20


@pytest.mark.parametrize(
    "seed", [1, 272_145_005, random.randrange(10**9)], ids=["fixed", "long-email", "random"]
)
async def test_every_message_has_one_outcome_and_the_worker_logs_no_problem(
    servers: Servers, seed: int
) -> None:
    print("seed", seed)
    report = await run_through_broker(servers.rabbitmq.url, servers.mongodb.url, COUNT, seed)

    assert report.failures == []
    assert report.outcomes.keys() == {"accepted", "duplicate", "unchanged", "rejected"}
    assert report.outcomes.total() == COUNT
    assert report.memory[-1] - report.memory[0] < GROWTH


@pytest.mark.parametrize("seed", [1, random.randrange(10**9)], ids=["fixed", "random"])
async def test_subscribers_and_operators_read_every_message(servers: Servers, seed: int) -> None:
    print("seed", seed)
    found = await run_readers(servers.rabbitmq.url, servers.mongodb.url, COUNT, seed)

    assert found.keys() == {"Event", "Gap", "Unreadable", "valid", "invalid"}


@pytest.mark.parametrize(
    "table",
    [[(b"a", b"S\xff\xff\xff\xff")], [(b"a", b"?")], [(b"CC", b"V")]],
    ids=["length-past-the-end", "unknown-type", "CC-not-a-list"],
)
async def test_the_broker_refuses_malformed_headers(
    servers: Servers, table: list[tuple[bytes, bytes]]
) -> None:
    """Check that no malformed header reaches a worker."""
    sent = RawMessage("nowhere", encode_content_header({}, table, 0), b"")

    async with open_raw_publisher(servers.rabbitmq.url) as publisher:
        with pytest.raises(ConnectionError, match=r"541|406|PRECONDITION"):
            await publisher.publish("", [sent])


@pytest.fixture
async def database(servers: Servers) -> AsyncIterator[AsyncDatabase[Document]]:
    place = Deployment(servers.rabbitmq.url, servers.mongodb.url)
    client: AsyncMongoClient[Document]
    async with AsyncMongoClient(place.mongo_url) as client:
        await client[place.database].create_collection(EVENTS, validator=build_validators()[EVENTS])
        yield client[place.database]
        await client.drop_database(place.database)


LONG = 250_000
TEXTS = {
    "email-local": ("email", "a" * (MAX_EMAIL - 2) + "@a"),
    "email-labels": ("email", "a@" + "a." * (MAX_EMAIL // 2 - 2) + "a"),
    "email-long-labels": ("email", "a@" + ".".join(["a" * 63] * 4)),
    "email-hyphens": ("email", "a@" + ".".join(["a-" * 31 + "a"] * 4)),
    "sip-user": ("sip", "a" * LONG + "@a"),
    "sip-host": ("sip", "a@" + "é" * (LONG // 2)),
    "line": ("line", "😀" * 255),
}


@pytest.mark.parametrize("name", list(TEXTS))
async def test_mongodb_takes_the_longest_texts_that_the_schema_allows(
    database: AsyncDatabase[Document], name: str
) -> None:
    """Check MongoDB's own limits: its regular expressions fail at about 2,000 labels."""
    kind, target = TEXTS[name]
    parsed = request(orjson.dumps(create_body(source={"type": kind, "target": target})))
    event = decide(None, parsed.command, parsed.command_id, NOW)
    assert isinstance(event, Event)

    await database[EVENTS].insert_one(build_event_document(Record(event, parsed.digest)))

    assert await database[EVENTS].count_documents({}) == 1


@pytest.mark.parametrize("field", ["target_name", "name", "detail"])
async def test_mongodb_takes_the_longest_free_texts(
    database: AsyncDatabase[Document], field: str
) -> None:
    source = {"type": "line", "target": "1", field: "x" * LONG}
    parsed = request(create_body(source=source))
    event = decide(None, parsed.command, parsed.command_id, NOW)
    assert isinstance(event, Event)

    await database[EVENTS].insert_one(build_event_document(Record(event, parsed.digest)))

    assert await database[EVENTS].count_documents({}) == 1
