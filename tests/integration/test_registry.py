"""Test the stored layout and the list of live workers, with both MongoDB drivers."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from pymongo import AsyncMongoClient

from outplan.domain.layout import EXPIRY_SECONDS, Layout
from outplan.domain.records import WorkerReport
from outplan.errors import LayoutChanged, StoreConflict
from outplan.mongodb.registry import MongoRegistry
from outplan.mongodb.store import MongoStore
from outplan.mongodb.validators import FENCES, LAYOUTS, WORKERS
from outplan.testing.servers import Servers


@pytest.fixture(scope="module")
def database() -> str:
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture(scope="module", params=["motor", "pymongo"])
async def store(
    request: pytest.FixtureRequest, servers: Servers, database: str
) -> AsyncIterator[MongoStore]:
    store = MongoStore(servers.mongodb.url, database, request.param)
    await store.prepare()
    yield store
    await store.close()


@pytest.fixture
def registry(store: MongoStore) -> MongoRegistry:
    return store.open_registry(f"prefix-{uuid4()}")


@pytest.fixture
async def documents(servers: Servers, database: str) -> AsyncIterator[Any]:
    async with AsyncMongoClient[dict[str, Any]](servers.mongodb.url) as client:
        yield client[database]


async def test_the_first_worker_writes_the_layout_and_the_others_read_it(
    registry: MongoRegistry,
) -> None:
    assert await registry.read_layout() is None
    found = await asyncio.gather(*(registry.ensure_layout(n) for n in (4, 16, 1)))
    assert found[0] == found[1] == found[2] == await registry.read_layout()
    assert found[0].partitions in (4, 16, 1)
    assert found[0].is_steady


async def test_a_layout_follows_only_the_one_in_force(registry: MongoRegistry) -> None:
    steady = await registry.ensure_layout(4)
    divert = steady.start(16, "token")
    await registry.replace_layout(steady, divert)
    with pytest.raises(StoreConflict):
        await registry.replace_layout(steady, steady.start(1, "another"))
    assert await registry.read_layout() == divert


async def test_a_barrier_counts_only_with_the_token_of_the_phase(registry: MongoRegistry) -> None:
    steady = await registry.ensure_layout(2)
    await registry.replace_layout(steady, steady.start(1, "now"))
    for queue, token in [("a", "now"), ("b", "before"), ("c", ""), ("a", "now"), ("d", "now")]:
        await registry.mark_drained(queue, token)
    found = await registry.read_layout()
    assert found is not None
    assert found.drained == {"a", "d"}


async def test_a_barrier_without_a_token_marks_nothing_when_steady(
    registry: MongoRegistry,
) -> None:
    steady = await registry.ensure_layout(2)
    await registry.mark_drained("a", "")
    assert await registry.read_layout() == steady


async def test_live_workers_are_listed_until_they_leave(registry: MongoRegistry) -> None:
    for worker in ("z", "a", "m", "z"):
        await registry.announce(f"{registry}{worker}", WorkerReport())
    assert [name[-1] for name in await registry.list_workers()] == ["a", "m", "z"]
    await registry.leave(f"{registry}a")
    assert [name[-1] for name in await registry.list_workers()] == ["m", "z"]


async def test_workers_of_another_prefix_do_not_count(
    registry: MongoRegistry, store: MongoStore
) -> None:
    other = store.open_registry(f"prefix-{uuid4()}")
    await other.announce(str(uuid4()), WorkerReport())
    assert await registry.list_workers() == []


async def test_a_worker_expires_by_the_servers_clock(
    registry: MongoRegistry, documents: Any
) -> None:
    worker = str(uuid4())
    await registry.announce(worker, WorkerReport(unordered=3))
    [hello] = [await documents.client.admin.command("hello")]
    now: datetime = hello["localTime"]
    stored = await documents[WORKERS].find_one({"_id": worker})
    assert abs((stored["seen"] - now).total_seconds()) < 5
    assert stored["unordered"] == 3
    long_ago = now - timedelta(seconds=EXPIRY_SECONDS + 1)
    await documents[WORKERS].update_one({"_id": worker}, {"$set": {"seen": long_ago}})
    assert await registry.list_workers() == []
    await registry.announce(worker, WorkerReport(unordered=4))
    assert await registry.list_workers() == [worker]


async def test_the_server_forgets_workers_that_were_killed(
    registry: MongoRegistry, documents: Any
) -> None:
    indexes = await documents[WORKERS].index_information()
    assert [i["expireAfterSeconds"] for i in indexes.values() if i["key"] == [("seen", 1)]] == [
        3_600
    ]


@pytest.mark.parametrize("wrong", [{"partitions": 0}, {"partitions": 257}, {"phase": "nonsense"}])
async def test_the_validator_refuses_a_wrong_layout(
    registry: MongoRegistry, documents: Any, wrong: dict[str, Any]
) -> None:
    layout = Layout(1, "steady", 4, 4)
    await registry.ensure_layout(4)
    with pytest.raises(Exception, match="Document failed validation"):
        await documents[LAYOUTS].update_many({"generation": layout.generation}, {"$set": wrong})


async def test_a_claim_of_an_older_layout_is_fenced_off(store: MongoStore, documents: Any) -> None:
    queue = f"queue-{uuid4()}"
    assert (await store.claim(queue, "one", 3)).epoch == 1
    assert (await store.claim(queue, "two", 3)).epoch == 2
    assert (await store.claim(queue, "three", 4)).epoch == 3
    with pytest.raises(LayoutChanged):
        await store.claim(queue, "late", 3)
    stored = await documents[FENCES].find_one({"_id": queue})
    assert (stored["worker"], stored["epoch"], stored["generation"]) == ("three", 3, 4)


async def test_a_fence_from_before_there_were_layouts_can_be_claimed(
    store: MongoStore, documents: Any
) -> None:
    queue = f"queue-{uuid4()}"
    await store.claim(queue, "one", 1)
    await documents[FENCES].update_one({"_id": queue}, {"$unset": {"generation": ""}})
    assert (await store.claim(queue, "two", 1)).epoch == 2


async def test_a_layout_that_was_deleted_comes_back_with_a_later_generation(
    store: MongoStore, documents: Any
) -> None:
    prefix = f"prefix.{uuid4()}"
    registry = store.open_registry(prefix)
    await registry.ensure_layout(4)
    await store.claim(f"{prefix}.commands", "one", 7)
    await documents[LAYOUTS].delete_one({"_id": prefix})
    assert (await registry.ensure_layout(4)).generation == 8
    await store.claim(f"{prefix}.commands", "two", 8)
