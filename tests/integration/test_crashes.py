"""A worker killed at each point of a command's way: once in effect, every event seen."""

import signal

import pytest

from outplan.domain.dedup import MAX_TRIALS
from outplan.worker.worker import SUSPICIOUS
from tests.support.story import a_story, check, tell
from tests.support.worker_process import Place, running_worker, start_worker
from tests.support.world import Outside, a_create

CRASHING = "tests.integration.crashing_worker"
POINTS = ("received", "loaded", "committed", "half published", "published")


@pytest.mark.parametrize("point", POINTS)
async def test_a_killed_worker_loses_and_repeats_nothing(
    place: Place, outside: Outside, point: str
) -> None:
    story = a_story()
    await tell(outside, story)

    victim = await start_worker(place, module=CRASHING, CRASH_AT=point)
    assert await victim.ended() == -signal.SIGKILL, victim.errors
    async with running_worker(place) as successor:
        # Its event tells that all before it is done, published once or twice as it may be.
        last = story.add("outplan_create", create := a_create(), "accepted")
        await outside.send("outplan_create", create, message_id=last)
        await outside.event_of(last)
        assert await successor.stop() == 0

    await check(outside, story)
    assert await outside.waiting() == 0


async def test_workers_killed_at_one_point_after_the_other_get_there(
    place: Place, outside: Outside
) -> None:
    story = a_story(outplans=12, rounds=8)
    await tell(outside, story)

    for point in (*POINTS, "committed", "published"):
        victim = await start_worker(place, module=CRASHING, CRASH_AT=point, OUTPLAN_BATCH_SIZE="40")
        assert await victim.ended() == -signal.SIGKILL, victim.errors
    async with running_worker(place):
        await check(outside, story)


async def test_a_command_that_kills_every_worker_ends_rejected_and_alone(
    place: Place, outside: Outside
) -> None:
    healthy = [await outside.send("outplan_create", a_create()) for _ in range(20)]
    killer = await outside.send("outplan_create", a_create(name="killer"))
    healthy += [await outside.send("outplan_create", a_create()) for _ in range(20)]

    for _ in range(SUSPICIOUS + MAX_TRIALS):
        victim = await start_worker(place, module=CRASHING)
        assert await victim.ended() == -signal.SIGKILL, victim.errors
    async with running_worker(place, module=CRASHING):
        await outside.until(lambda: all(outside.events_of(id_) for id_ in healthy))

    copy = await outside.rejected_of(killer)
    assert copy.headers["x-problem-code"] == "delivery_limit"
    assert outside.replies[killer][0]["problem"]["status"] == 500
    assert len(outside.rejected) == 1


async def test_a_command_that_meets_a_bug_holds_up_nobody_for_long(
    place: Place, outside: Outside
) -> None:
    async with running_worker(place, module=CRASHING):
        before = await outside.send("outplan_create", a_create())
        bug = await outside.send("outplan_create", a_create(name="bug"))
        after = await outside.send("outplan_create", a_create())
        await outside.until(lambda: bool(outside.events_of(before) and outside.events_of(after)))

    assert (await outside.rejected_of(bug)).headers["x-problem-code"] == "delivery_limit"
