"""Test the store with both MongoDB drivers and in memory."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import WriteError

from outplan.contract.messages import Create, Event, Update
from outplan.domain.decider import State, decide, evolve
from outplan.domain.records import Attempt, Fence, Record, RecordedOutcome, Snapshot
from outplan.errors import Fenced, StoreConflict, StoreUnavailable, Unprocessable
from outplan.mongodb.store import MongoStore
from outplan.testing.memory.store import MemoryStore
from outplan.testing.servers import Servers
from outplan.worker.ports import BatchTransaction, OutplanStore
from tests.support.world import create_body

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
NOW = "2026-11-23 06:10:00.123456"
QUEUE = "commands"
DIGEST = "0" * 64
DRIVERS = ["motor", "pymongo"]


@pytest.fixture(scope="module")
def database() -> str:
    return f"test-{uuid4().hex[:12]}"


@asynccontextmanager
async def open_mongo_store(
    servers: Servers, database: str, driver: str
) -> AsyncIterator[MongoStore]:
    store = MongoStore(servers.mongodb.url, database, driver)
    await store.prepare()
    yield store
    await store.close()


@pytest.fixture(scope="module", params=[*DRIVERS, "memory"])
async def store(
    request: pytest.FixtureRequest, servers: Servers, database: str
) -> AsyncIterator[OutplanStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    async with open_mongo_store(servers, database, request.param) as store:
        yield store


@pytest.fixture
async def rival(
    store: OutplanStore, servers: Servers, database: str
) -> AsyncIterator[OutplanStore]:
    """Open the same documents for another worker."""
    if isinstance(store, MemoryStore):
        yield store
        return
    async with open_mongo_store(servers, database, "motor") as rival:
        yield rival


@pytest.fixture(scope="module", params=DRIVERS)
async def mongo_store(
    request: pytest.FixtureRequest, servers: Servers, database: str
) -> AsyncIterator[MongoStore]:
    async with open_mongo_store(servers, database, request.param) as store:
        yield store


@pytest.fixture(scope="module")
async def mongo(servers: Servers, database: str) -> AsyncIterator[Any]:
    async with AsyncMongoClient[dict[str, Any]](servers.mongodb.url) as client:
        yield client[database]
        await client.drop_database(database)


def create_record(name: str = "one") -> tuple[Record, State]:
    event = decide(None, Create(**create_body(name=name)), str(uuid4()), NOW)
    assert isinstance(event, Event)
    return Record(event, DIGEST), evolve(None, event)


def rename_record(state: State, name: str) -> Record:
    event = decide(state, Update(id=state.outplan.id, name=name), str(uuid4()), NOW)
    assert isinstance(event, Event)
    return Record(event, DIGEST)


async def save(store: OutplanStore, *records: Record, known: State | None = None) -> None:
    states = {known.outplan.id: known} if known else {}
    await store.transact(lambda transaction: transaction.save(records, states))


async def load(store: OutplanStore, *records: Record) -> Snapshot:
    return await store.transact(
        lambda transaction: transaction.load(
            {record.event.data.id for record in records}, {record.event.id for record in records}
        )
    )


async def test_load_returns_past_versions(store: OutplanStore) -> None:
    record, state = create_record("one")
    await save(store, record)
    await save(store, rename_record(state, "two"), known=state)
    id_ = record.event.data.id

    found = await store.transact(lambda transaction: transaction.load([id_], [], {(id_, 1)}))

    assert found.states[id_].outplan.name == "two"
    assert {k: (s.version, s.outplan.name) for k, s in found.past.items()} == {(id_, 1): (1, "one")}


async def test_saved_records_are_loaded_by_id(store: OutplanStore) -> None:
    record, state = create_record()

    await save(store, record)

    found = await load(store, record)
    assert found.states == {state.outplan.id: state}
    assert found.records == {record.event.id: record}


async def test_several_events_of_one_outplan_save_its_last_state(store: OutplanStore) -> None:
    record, state = create_record()
    second = rename_record(state, "two")
    third = rename_record(evolve(state, second.event), "three")

    await save(store, record, second, third)

    found = await load(store, record)
    assert (found.states[state.outplan.id].version, third.event.data.name) == (3, "three")


async def test_saving_over_a_newer_version_is_a_conflict(store: OutplanStore) -> None:
    record, state = create_record()
    await save(store, record)
    await save(store, rename_record(state, "first"), known=state)

    with pytest.raises(StoreConflict):
        await save(store, rename_record(state, "late"), known=state)

    found = await load(store, record)
    assert found.states[state.outplan.id].outplan.name == "first"


async def test_saving_a_recorded_event_is_a_conflict_and_stores_nothing(
    store: OutplanStore,
) -> None:
    record, _ = create_record()
    other, _ = create_record()
    await save(store, record)

    with pytest.raises(StoreConflict):
        await save(store, other, record)

    assert (await load(store, other)).records == {}


async def test_an_error_in_a_transaction_rolls_it_back(store: OutplanStore) -> None:
    record, _ = create_record()

    async def work(transaction: BatchTransaction) -> None:
        await transaction.save([record], {})
        raise Unprocessable("after the write")

    with pytest.raises(Unprocessable):
        await store.transact(work)

    assert (await load(store, record)).records == {}


async def test_a_cancelled_transaction_is_committed_before_the_cancellation_ends(
    store: OutplanStore,
) -> None:
    record, _ = create_record()
    started = asyncio.Event()

    async def work(transaction: BatchTransaction) -> None:
        started.set()
        await transaction.save([record], {})

    task = asyncio.create_task(store.transact(work))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert record.event.id in (await load(store, record)).records


async def test_a_document_that_breaks_the_contract_is_unprocessable(store: OutplanStore) -> None:
    record, state = create_record()
    broken = state.outplan.model_copy(update={"dial_timeout": 30})

    with pytest.raises(Unprocessable):
        await save(store, Record(record.event.model_copy(update={"data": broken}), DIGEST))


async def test_a_claim_fences_off_every_earlier_worker(store: OutplanStore) -> None:
    queue = f"queue-{uuid4()}"
    first = await store.claim(queue, "one", 1)
    await store.transact(lambda transaction: transaction.save([], {}, [first]))
    second = await store.claim(queue, "two", 1)

    with pytest.raises(Fenced):
        await store.transact(lambda transaction: transaction.save([], {}, [first]))
    with pytest.raises(Fenced):
        await store.record_attempt(first, Attempt("message", 1))
    with pytest.raises(Fenced):
        await store.transact(lambda transaction: transaction.read_fence(first))
    await store.transact(lambda transaction: transaction.save([], {}, [second]))
    assert (first.epoch, second.epoch) == (1, 2)


async def test_a_claim_inherits_recorded_outcomes_and_the_attempt(store: OutplanStore) -> None:
    queue = f"queue-{uuid4()}"
    verdict = RecordedOutcome("a message", 7, "not_found", "no such outplan", None)
    claimed = await store.claim(queue, "one", 1)
    held = Fence(queue, claimed.epoch, (verdict,))
    await store.transact(lambda transaction: transaction.save([], {}, [held]))
    await store.record_attempt(held, Attempt("message", 2))

    inherited = await store.claim(queue, "two", 1)

    assert inherited == Fence(queue, 2, (verdict,), Attempt("message", 2), crashes=1)


async def test_a_claim_counts_the_sessions_before_it_that_did_not_end_cleanly(
    store: OutplanStore,
) -> None:
    queue = f"queue-{uuid4()}"
    first = await store.claim(queue, "one", 1)
    second = await store.claim(queue, "two", 1)
    await store.release([first])
    third = await store.claim(queue, "three", 1)
    assert [fence.crashes for fence in (first, second, third)] == [0, 1, 2], "only the holder may"
    await store.record_attempt(third, Attempt("message", 2))
    await store.release([Fence(queue, third.epoch)])
    fourth = await store.claim(queue, "four", 1)
    assert (fourth.crashes, fourth.attempt) == (0, Attempt("message", 2))
    await store.release([Fence(queue, fourth.epoch, attempt=Attempt("message", 1))])
    assert (await store.claim(queue, "five", 1)).attempt == Attempt("message", 1)


async def test_an_attempt_can_be_reduced_to_zero(store: OutplanStore) -> None:
    queue = f"queue-{uuid4()}"
    claimed = await store.claim(queue, "one", 1)
    await store.record_attempt(claimed, Attempt("message", 1))
    await store.record_attempt(claimed, Attempt("message", 0))

    assert (await store.claim(queue, "two", 1)).attempt == Attempt("message", 0)


async def test_hold_saves_recorded_outcomes_and_clears_the_attempt(store: OutplanStore) -> None:
    queue = f"queue-{uuid4()}"
    claimed = await store.claim(queue, "one", 1)
    await store.record_attempt(claimed, Attempt("message", 1))
    judged = Fence(queue, claimed.epoch, (RecordedOutcome("a message", 7),), crashes=1)

    await store.transact(lambda transaction: transaction.save([], {}, [judged]))

    assert await store.transact(lambda transaction: transaction.read_fence(claimed)) == judged


async def test_a_claim_during_a_transaction_rolls_it_back(
    store: OutplanStore, rival: OutplanStore
) -> None:
    queue = f"queue-{uuid4()}"
    record, _ = create_record()
    claimed = await store.claim(queue, "one", 1)

    async def claim_inside(transaction: BatchTransaction) -> None:
        await transaction.load({record.event.data.id}, {record.event.id})
        await rival.claim(queue, "two", 1)
        await transaction.save([record], {})
        await transaction.save([], {}, [claimed])

    with pytest.raises((Fenced, StoreConflict, StoreUnavailable)):
        await store.transact(claim_inside)

    assert (await load(rival, record)).records == {}


async def test_a_claim_aborts_the_open_transaction_of_a_dead_worker(
    mongo_store: MongoStore, servers: Servers, database: str
) -> None:
    queue = f"queue-{uuid4()}"
    record, _ = create_record()
    dead = MongoStore(servers.mongodb.url, database)
    await dead.claim(queue, "dead", 1)
    saved, released = asyncio.Event(), asyncio.Event()

    async def hold_open(transaction: BatchTransaction) -> None:
        await transaction.save([record], {})
        saved.set()
        await released.wait()

    open_transaction = asyncio.create_task(dead.transact(hold_open))
    await saved.wait()

    await mongo_store.claim(queue, "next", 1)
    async with asyncio.timeout(5):
        await save(mongo_store, record)

    released.set()
    with pytest.raises((StoreUnavailable, StoreConflict)):
        await open_transaction
    await dead.close()


async def test_prepare_is_idempotent(mongo_store: MongoStore, mongo: Any) -> None:
    before = [item async for item in await mongo.list_collections()]
    await mongo_store.prepare()
    after = [item async for item in await mongo.list_collections()]

    assert sorted(str(item) for item in before) == sorted(str(item) for item in after)


async def test_prepare_updates_an_older_validator(mongo_store: MongoStore, mongo: Any) -> None:
    await mongo.command("collMod", "outplans", validator={"$jsonSchema": {"bsonType": "object"}})
    await mongo_store.prepare()

    (options,) = [
        item["options"] async for item in await mongo.list_collections(filter={"name": "outplans"})
    ]  # fmt: skip
    assert "customer_id" in options["validator"]["$jsonSchema"]["required"]


# Valid to read. Nobody may insert such a document any more.
BEFORE_THE_RULES: Final = "stored-before-the-rules-on-characters"


def example_documents(kind: str) -> list[Path]:
    # A stored document has a version, which the contract's message must not have.
    paths = sorted((EXAMPLES / kind / "outplan").glob("*.json"))
    left_out = ("version-in-the-document", BEFORE_THE_RULES)
    return [path for path in paths if path.stem not in left_out]


def stored_form(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text())
    return {"_id": document.pop("id", None), **document, "version": 1}


@pytest.mark.parametrize("path", example_documents("invalid"), ids=lambda path: path.stem)
async def test_validators_reject_invalid_documents_of_any_writer(
    mongo_store: MongoStore, mongo: Any, path: Path
) -> None:
    with pytest.raises(WriteError, match="failed validation"):
        await mongo["outplans"].insert_one(stored_form(path))


@pytest.mark.parametrize("path", example_documents("valid"), ids=lambda path: path.stem)
async def test_validators_accept_valid_documents_of_any_writer(
    mongo_store: MongoStore, mongo: Any, path: Path
) -> None:
    document = stored_form(path)
    await mongo["outplans"].insert_one(document)
    await mongo["outplans"].delete_one({"_id": document["_id"]})
