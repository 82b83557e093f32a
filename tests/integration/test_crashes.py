"""A worker killed at each point of a command's way: once in effect, every event seen."""

import signal

import pytest

from tests.integration.crashing_worker import POINTS
from tests.integration.outside import Outside
from tests.integration.story import a_story, check, tell
from tests.integration.worker_process import Place, running_worker, start_worker

CRASHING = "tests.integration.crashing_worker"


@pytest.mark.parametrize("point", POINTS)
async def test_a_killed_worker_loses_and_repeats_nothing(
    place: Place, outside: Outside, point: str
) -> None:
    story = a_story()
    await tell(outside, story)

    victim = await start_worker(place, module=CRASHING, CRASH_AT=point)
    assert await victim.ended() == -signal.SIGKILL
    async with running_worker(place) as successor:
        await check(outside, story)
        assert await successor.stop() == 0

    assert await outside.waiting() == 0


async def test_a_worker_killed_at_every_point_in_turn_gets_there(
    place: Place, outside: Outside
) -> None:
    story = a_story(outplans=12, rounds=8)
    await tell(outside, story)

    for point in (*POINTS, *reversed(POINTS)):
        victim = await start_worker(
            place, module=CRASHING, CRASH_AT=point, OUTPLAN_BATCH_SIZE="40"
        )
        assert await victim.ended() == -signal.SIGKILL
    async with running_worker(place):
        await check(outside, story)
