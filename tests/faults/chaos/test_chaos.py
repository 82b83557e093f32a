"""Check that faults break no promise, and that the checker finds each planted fault."""

import asyncio
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest

from outplan.testing.servers import Servers, start_servers
from tests.faults.chaos import report
from tests.faults.chaos.plants import PLANTS
from tests.faults.chaos.recorder import EVENT_QUEUE_LENGTH
from tests.faults.chaos.run import Disruption, Plan, RunContext, run
from tests.faults.chaos.single_testbed import SingleTestbed


@pytest.fixture(scope="module")
def own_servers() -> Iterator[Servers]:
    """Start servers that the tests may kill."""
    with start_servers("own") as running:
        yield running


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(1, seconds=45, pace=600, pause=0.8), marks=pytest.mark.slow),
        Plan(2, seconds=45, pace=600, pause=1.5, partitions=4, changes=5),
    ],
)
async def test_faults_break_no_promise(own_servers: Servers, plan: Plan) -> None:
    result = await run(plan, SingleTestbed(own_servers, random.Random(plan.seed)))

    print("\n".join(report.render_timeline(result.history.faults)))
    assert list(report.render_violations(result.violations)) == [report.NO_VIOLATION]
    # A run without load or faults would prove nothing.
    counts = result.summary()
    assert counts["faults"] >= 20
    assert min(counts["confirmed"], counts["events"], counts["rejected copies"]) >= 500
    assert bool(counts["layout changes"]) == bool(plan.changes)


async def overflow_event_queue(context: RunContext) -> None:
    """Pause the subscriber until the broker has nacked hundreds of events."""
    context.recorder.pause()
    await context.recorder.fill_event_queue()
    await context.wait_until_handled(2 * EVENT_QUEUE_LENGTH, 60)
    context.recorder.resume()


async def change_layout_with_backlog(context: RunContext) -> None:
    """Change the layout while commands wait in the old queues for workers to come."""
    await context.workers.kill_all()
    await context.wait_until_sent(1_000)
    changing = asyncio.create_task(context.layouts.change_to(7))
    await asyncio.wait({changing}, timeout=20)
    context.workers.supervise()
    for _ in range(3):
        await context.workers.start()
    await changing


# Random faults expose these planted ones in some runs only.
DISRUPTIONS: Mapping[str, Disruption] = {
    "take_nack_for_confirm": overflow_event_queue,
    "skip_barrier": change_layout_with_backlog,
}
PLANTED_PLAN = Plan(5, seconds=20, pace=400, pause=0.7, settle=15)


@pytest.mark.planted
@pytest.mark.timeout(300)
@pytest.mark.parametrize("planted", list(PLANTS))
async def test_a_planted_fault_is_found(own_servers: Servers, planted: str) -> None:
    partitions = 4 if planted == "skip_barrier" else 1
    plan = replace(PLANTED_PLAN, planted=planted, partitions=partitions)
    testbed = SingleTestbed(own_servers, random.Random(plan.seed))

    result = await run(plan, testbed, DISRUPTIONS.get(planted))

    print("\n".join(report.render_violations(result.violations)))
    rules = {violation.rule for violation in result.violations}
    if planted == "skip_barrier":
        assert "commands out of order" in rules
    # Any test would notice a service that does nothing at all.
    assert rules - {"worker failed", "stuck", "layout change failed", "layout not steady"}


@pytest.mark.planted
@pytest.mark.timeout(300)
async def test_a_layout_change_without_the_planted_fault_keeps_order(own_servers: Servers) -> None:
    plan = replace(PLANTED_PLAN, partitions=4, settle=60)
    testbed = SingleTestbed(own_servers, random.Random(plan.seed))

    result = await run(plan, testbed, change_layout_with_backlog)

    assert list(report.render_violations(result.violations)) == [report.NO_VIOLATION]
