"""Messages that end whoever handles them, and workers that die whatever they handle."""

import signal
from collections import Counter
from time import monotonic

import pytest

from tests.faults.chaos.supervisor import kept_running
from tests.support.rejects import run
from tests.support.story import Story, a_story, check, tell
from tests.support.worker_process import Place, running_worker
from tests.support.world import Outside, a_create, witness

CRASHING = "tests.integration.crashing_worker"
HANG_SECONDS = 1.5
LOOP_SECONDS = 60.0
# One that can't be judged is tried so often that a slow machine takes its time.
PATIENCE = 150.0

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("kind", ["killer", "endless"])
async def test_a_killer_ends_rejected_alone_and_is_redriven_after_the_mend(
    place: Place, kind: str
) -> None:
    # The operator's commands read the rejected queue: the witness is not to take it empty.
    async with witness(place, watch_rejected=False) as outside:
        healthy = [await outside.send("outplan_create", a_create()) for _ in range(20)]
        killer = await outside.send("outplan_create", a_create(name=kind))
        healthy += [await outside.send("outplan_create", a_create()) for _ in range(20)]

        async with kept_running(
            place, module=CRASHING, OUTPLAN_HANG_SECONDS=str(HANG_SECONDS)
        ) as codes:
            await outside.until(lambda: heard(outside, healthy), PATIENCE)
            await outside.until(lambda: bool(outside.replies[killer]), PATIENCE)
        assert set(codes) == {-signal.SIGKILL if kind == "killer" else 1}
        assert outside.replies[killer][0]["problem"]["code"] == "delivery_limit"

        async with running_worker(place):
            code, _, told = await run(place, "redrive", killer)
            assert (code, told) == (0, "1 of 1 copy: 1 accepted\n")
            await outside.event_of(killer)
    assert set(Counter(e.message_id for e in outside.events)) == {*healthy, killer}


async def test_where_workers_die_every_second_no_healthy_command_is_parked(place: Place) -> None:
    async with witness(place) as outside:
        story = a_story(outplans=40, rounds=10)
        await tell(outside, story)

        began = monotonic()
        async with kept_running(place, module=CRASHING, CRASH_AFTER="1") as codes:
            while monotonic() - began < LOOP_SECONDS:
                await healthy_ones(outside, story)
        async with running_worker(place) as survivor:
            await check(outside, story)
            assert await survivor.stop() == 0

        assert len(codes) >= LOOP_SECONDS / 4
        assert set(codes) == {-signal.SIGKILL}
        parked = {copy.headers["x-problem-code"] for copy in outside.rejected}
        assert "delivery_limit" not in parked


async def healthy_ones(outside: Outside, story: Story) -> None:
    """Send some more, and await that they have got through."""
    ids = [story.add("outplan_create", a_create(), "accepted") for _ in range(50)]
    for id_, name, body in story.commands[-len(ids) :]:
        await outside.send(name, body, message_id=id_)
    await outside.until(lambda: heard(outside, ids), PATIENCE)


def heard(outside: Outside, ids: list[str]) -> bool:
    return {e.message_id for e in outside.events} >= set(ids)
