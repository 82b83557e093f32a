"""SIGTERM: what is in hand is finished, the rest stays in the queue."""

import asyncio
import signal

import pytest

from outplan.testing.servers import Servers
from tests.support.worker_process import Place, running_worker, start_worker
from tests.support.world import Outside, a_create

COMMANDS = 2_000


async def preloaded(outside: Outside, count: int) -> None:
    for n in range(0, count, 200):
        sends = (
            outside.send("outplan_create", a_create(), reply_to=None) for _ in range(n, n + 200)
        )
        await asyncio.gather(*sends)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_under_load_it_finishes_what_is_in_hand_and_leaves_the_rest(
    place: Place, outside: Outside, number: signal.Signals
) -> None:
    await preloaded(outside, COMMANDS)
    async with running_worker(place, OUTPLAN_BATCH_SIZE="10") as worker:
        await outside.until(lambda: len(outside.events) >= COMMANDS // 10)
        worker.signal(number)

        assert await worker.ended() == 0

    assert [line["event"] for line in worker.log[-2:]] == ["draining", "stopped"]
    waiting = await settled_waiting(outside)
    _, history = await outside.stored()
    assert 0 < waiting < COMMANDS
    assert waiting + len(history) == COMMANDS
    await outside.until(lambda: len(outside.events) == len(history))
    assert sorted(e.message_id or "" for e in outside.events) == sorted(e["_id"] for e in history)


async def settled_waiting(outside: Outside) -> int:
    """The queue's length once the broker has taken back what was only prefetched."""
    async with asyncio.timeout(20):
        while True:
            before = await outside.waiting()
            await asyncio.sleep(0.3)
            if before and before == await outside.waiting():
                return before


async def test_idle_it_leaves_at_once(place: Place, outside: Outside) -> None:
    async with running_worker(place) as worker:
        async with asyncio.timeout(3):
            assert await worker.stop() == 0


async def test_a_second_signal_leaves_at_once(
    servers: Servers, place: Place, outside: Outside
) -> None:
    async with running_worker(place) as worker:
        await outside.ask("outplan_create", a_create())
        await asyncio.to_thread(servers.mongodb.pause)
        try:
            await outside.send("outplan_create", a_create())
            await asyncio.sleep(0.3)  # The command is in hand, and MongoDB answers nothing.
            worker.signal(signal.SIGTERM)
            await worker.logged("draining")
            worker.signal(signal.SIGTERM)
            async with asyncio.timeout(2):
                assert await worker.ended() == 128 + signal.SIGTERM
        finally:
            await asyncio.to_thread(servers.mongodb.resume)

    async with running_worker(place):
        await outside.until(lambda: len(outside.events) == 2)


async def test_what_cannot_be_finished_by_the_deadline_stays_in_the_queue(
    servers: Servers, place: Place, outside: Outside
) -> None:
    async with running_worker(place, OUTPLAN_DRAIN_SECONDS="1") as worker:
        await outside.ask("outplan_create", a_create())
        await asyncio.to_thread(servers.mongodb.stop)
        try:
            await outside.send("outplan_create", a_create())
            await worker.logged("waiting")
            assert await worker.stop() == 0
            assert any("deadline" in line["event"] for line in worker.log)
        finally:
            await asyncio.to_thread(servers.mongodb.start)

    async with running_worker(place):
        await outside.until(lambda: len(outside.events) == 2)


async def test_while_it_waits_for_a_server_it_leaves_at_once(
    servers: Servers, place: Place
) -> None:
    nowhere = Place(
        "amqp://guest:guest@127.0.0.1:9/", place.mongo_url, place.prefix, place.database
    )
    worker = await start_worker(nowhere)
    await worker.logged("waiting")
    async with asyncio.timeout(5):
        assert await worker.stop() == 0
