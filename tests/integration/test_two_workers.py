"""Two workers at once on the same outplans: order and versions hold whoever falls."""

import asyncio
import signal

import pytest

from tests.support.story import (
    Story,
    assert_first_published_in_order,
    assert_repeats_are_the_same,
    assert_stored,
)
from tests.support.worker_process import Place, WorkerProcess, running_worker, start_worker
from tests.support.world import Outside, a_create

HOT = [f"0000000{n}-0000-4000-8000-00000000000{n}" for n in range(1, 4)]
BETWEEN_FALLS = 150


async def sending(
    outside: Outside, story: Story, enough: asyncio.Event, most: int = 50_000
) -> None:
    """Updates of a few hot outplans, in order, at the pace of the confirms, until it is enough."""
    for n in range(most):
        if enough.is_set():
            return
        id_ = HOT[n % len(HOT)]
        body = {"id": id_, "try_interval": 1_000 + n}
        story.add("outplan_update", body, "accepted")
        story.intervals[id_].append(1_000 + n)
        await outside.send("outplan_update", body, message_id=story.commands[-1][0])


async def hot_outplans(outside: Outside) -> Story:
    story = Story()
    for id_ in HOT:
        story.add("outplan_create", a_create(id=id_), "accepted")
        story.intervals[id_].append(60_000)
        await outside.send("outplan_create", a_create(id=id_), message_id=story.commands[-1][0])
    return story


async def the_fall(outside: Outside, victim: WorkerProcess, number: signal.Signals) -> int:
    seen = len(outside.events)
    await outside.until(lambda: len(outside.events) >= seen + BETWEEN_FALLS)
    victim.signal(number)
    return await victim.ended()


async def assert_all_in_order(outside: Outside, story: Story) -> None:
    accepted = set(story.expected)
    await outside.until(lambda: {e.message_id for e in outside.events} >= accepted)
    assert_repeats_are_the_same(outside)
    assert_first_published_in_order(outside)
    await assert_stored(outside, story, accepted)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_when_one_of_two_workers_falls_the_other_goes_on_in_order(
    place: Place, outside: Outside, number: signal.Signals
) -> None:
    async with running_worker(place) as first, running_worker(place) as second:
        story = await hot_outplans(outside)
        enough = asyncio.Event()
        load = asyncio.create_task(sending(outside, story, enough))
        await the_fall(outside, first, number)
        async with running_worker(place):
            await the_fall(outside, second, number)
            enough.set()
            await load
            await assert_all_in_order(outside, story)


async def test_a_worker_that_was_stopped_comes_back_fenced_off(
    place: Place, outside: Outside
) -> None:
    async with running_worker(place, OUTPLAN_HANG_SECONDS="0") as sleeper:
        story = await hot_outplans(outside)
        await outside.until(lambda: len(outside.events) == len(HOT))
        sleeper.signal(signal.SIGSTOP)
        load = asyncio.create_task(sending(outside, story, asyncio.Event(), most=900))
        async with running_worker(place):
            # The broker gives up on the sleeper when its heartbeats stay away.
            await outside.until(lambda: len(outside.events) > len(HOT) + 10, seconds=60)
            sleeper.signal(signal.SIGCONT)
            await load
            await assert_all_in_order(outside, story)
            await sleeper.logged("consuming again")


async def test_a_clock_that_is_behind_takes_no_time_back(place: Place, outside: Outside) -> None:
    reply = {}
    async with running_worker(place):
        reply = await outside.ask("outplan_create", a_create())
    id_, created = reply["outplan"]["id"], reply["outplan"]["tm_update"]

    behind = await start_worker(place, module="tests.integration.slow_clock_worker")
    try:
        await behind.logged("ready")
        updated = await outside.ask("outplan_update", {"id": id_, "name": "later"})
        deleted = await outside.ask("outplan_delete", {"id": id_})
    finally:
        await behind.kill()

    times = [created, updated["outplan"]["tm_update"], deleted["outplan"]["tm_update"]]
    assert times == sorted(set(times))
    assert times[1][:19] == created[:19]
    assert [e["time"] for e in await outside.history(id_)] == times
