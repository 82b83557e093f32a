"""Check that faults break no promise, and that the checker finds each planted fault."""

import random
from collections.abc import Iterator, Mapping

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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
async def test_faults_break_no_promise(own_servers: Servers, seed: int) -> None:
    plan = Plan(seed, seconds=45, pace=600, pause=0.8)

    result = await run(plan, SingleTestbed(own_servers, random.Random(seed)))

    print("\n".join(report.render_timeline(result.history.faults)))
    assert list(report.render_violations(result.violations)) == [report.NO_VIOLATION]
    # A run without load or faults would prove nothing.
    counts = result.summary()
    assert counts["faults"] >= 20
    assert min(counts["confirmed"], counts["events"], counts["rejected copies"]) >= 500


async def overflow_event_queue(context: RunContext) -> None:
    """Pause the subscriber until the broker has nacked hundreds of events."""
    context.recorder.pause()
    await context.recorder.fill_event_queue()
    await context.wait_until_handled(2 * EVENT_QUEUE_LENGTH, 60)
    context.recorder.resume()


# Random faults expose these planted ones in some runs only.
DISRUPTIONS: Mapping[str, Disruption] = {"take_nack_for_confirm": overflow_event_queue}


@pytest.mark.planted
@pytest.mark.timeout(300)
@pytest.mark.parametrize("planted", list(PLANTS))
async def test_a_planted_fault_is_found(own_servers: Servers, planted: str) -> None:
    plan = Plan(5, seconds=20, pace=400, pause=0.7, planted=planted, settle=15)
    testbed = SingleTestbed(own_servers, random.Random(plan.seed))

    result = await run(plan, testbed, DISRUPTIONS.get(planted))

    print("\n".join(report.render_violations(result.violations)))
    rules = {violation.rule for violation in result.violations}
    # Any test would notice a service that does nothing at all.
    assert rules - {"worker failed", "stuck", "layout change failed", "layout not steady"}
