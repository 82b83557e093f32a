"""The service in memory: its speed, and the questions that only it can answer."""

import asyncio
import time
from uuid import uuid4

import pytest
from pamqp.commands import Basic

from outplan.client import OutcomeUnknown
from outplan.contract.topology import PREFETCH, build_topology
from outplan.testing.errors import WorkerFailed
from outplan.testing.memory import memory_service
from outplan.testing.memory.broker import MemoryBroker, Message
from tests.support.modes import outplan_fields


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(build_topology(), lambda _: None)


@pytest.fixture
def awake() -> asyncio.Event:
    found = asyncio.Event()
    found.set()
    return found


async def run_one_test() -> None:
    async with memory_service() as service:
        created = await service.create(**outplan_fields())
        assert (await service.next_event()).data == created.outplan


async def test_one_test_takes_less_than_ten_milliseconds() -> None:
    await run_one_test()  # The first one compiles the contract's schemas.
    worked, waited = [], []
    for _ in range(30):
        since = time.process_time(), time.perf_counter()
        await run_one_test()
        worked.append(time.process_time() - since[0])
        waited.append(time.perf_counter() - since[1] - worked[-1])
    # The fastest, because other programs slow this or that one down, or hold it up.
    assert min(worked) < 0.010
    assert min(waited) < 0.005


async def test_no_task_is_left_behind() -> None:
    before = asyncio.all_tasks()
    await run_one_test()
    assert asyncio.all_tasks() == before


async def test_two_services_are_independent() -> None:
    async with memory_service() as one, memory_service() as other:
        await one.create(**outplan_fields())
        assert (len(await one.events()), len(await other.events())) == (1, 0)
        assert await other.documents() == ()


async def test_without_an_answer_the_outcome_is_unknown() -> None:
    async with memory_service(within=0.05) as service:
        await service.pause_worker()
        with pytest.raises(OutcomeUnknown) as unknown:
            await service.create(**outplan_fields())
        await service.resume_worker()

        again = await service.create(**outplan_fields(), message_id=unknown.value.message_id)
        assert (again.duplicate, len(await service.documents())) == (True, 1)


async def test_calls_wait_for_a_stopped_broker_and_time_out() -> None:
    async with memory_service(within=0.05) as service:
        await service.stop_broker()
        await service.stop_broker()
        with pytest.raises(OutcomeUnknown, match="the broker was stopped"):
            await service.create(**outplan_fields())
        with pytest.raises(OutcomeUnknown, match="the broker was stopped"):
            await service.publish("outplan_create", outplan_fields())
        await service.start_broker()
        await service.start_broker()
        assert await service.events() == ()


async def test_the_next_worker_publishes_what_a_killed_one_committed() -> None:
    id_ = str(uuid4())
    async with memory_service() as service:
        await service.publish("outplan_create", outplan_fields(id=id_))
        for n in range(20):
            await service.publish("outplan_update", {"id": id_, "name": str(n)})
        await service.next_event()
        await service.kill_worker()
        # All was committed at once, and hardly any of it has been published.
        assert [d.version for d in await service.documents()] == [21]
        published = await service.events()
        assert 0 < len(published) < 21

        await service.start_worker()
        await service.create(**outplan_fields())
        again = (await service.events())[len(published) : -1]
        assert [event.version for event in again] == list(range(1, 22))
        assert again[: len(published)] == published


def a_command(id_: str) -> Message:
    return Message("outplan_delete", Basic.Properties(message_id=id_), b"{}")


async def test_unacked_messages_are_redelivered_first_with_their_count(
    broker: MemoryBroker, awake: asyncio.Event
) -> None:
    for n in range(3):
        broker.send(a_command(f"old {n}"))
    for _ in range(2):
        async with broker.worker_session(awake) as session:
            batch = await session.receive(2)
            assert batch[0].command_id == "old 0"
    async with broker.worker_session(awake) as session:
        await session.ack((await session.receive(1))[0])
    broker.send(a_command("new"))

    async with broker.worker_session(awake) as session:
        again = await session.receive(10)
    assert [(d.command_id, d.redelivered, d.delivery_count) for d in again] == [
        ("old 1", True, 3), ("old 2", True, 3), ("new", False, 0),
    ]  # fmt: skip


async def test_the_prefetch_is_that_of_the_real_broker(
    broker: MemoryBroker, awake: asyncio.Event
) -> None:
    for n in range(PREFETCH + 1):
        broker.send(a_command(str(n)))
    async with broker.worker_session(awake) as session:
        batch = await session.receive(2 * PREFETCH)
        assert len(batch) == PREFETCH
        await session.ack(batch[-1])
        assert [d.command_id for d in await session.receive(2)] == [str(PREFETCH)]


async def test_a_message_that_amqp_cannot_carry_is_an_error(broker: MemoryBroker) -> None:
    with pytest.raises(TypeError, match="255"):
        broker.send(a_command("x" * 256))


async def test_the_error_that_ended_the_worker_is_raised_at_once_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bug(*_: object) -> object:
        raise KeyError("a bug")

    async def killed_by_it() -> None:
        async with memory_service() as service:
            monkeypatch.setattr("outplan.worker.pipeline.build_publications", bug)
            with pytest.raises(WorkerFailed, match="exited by itself") as failed:
                await service.create(**outplan_fields())
            assert repr(failed.value.__cause__) == "KeyError('a bug')"
            for call in (service.next_event(), service.events(), service.publish("", {})):
                with pytest.raises(WorkerFailed, match="exited by itself"):
                    await call

    with pytest.raises(KeyError, match="a bug"):
        await killed_by_it()
