"""Ninety seconds of faults, in which every promise is kept; and planted ones, which are found."""

import random
from collections.abc import Iterator, Mapping

import pytest

from outplan.testing.servers import Servers, start_servers
from tests.faults.chaos import report
from tests.faults.chaos.plants import PLANTS
from tests.faults.chaos.run import Ordeal, Plan, Stage, run
from tests.faults.chaos.single import Single
from tests.faults.chaos.witness import QUEUE_LENGTH


@pytest.fixture(scope="module")
def own() -> Iterator[Servers]:
    """Servers that may be killed."""
    with start_servers("own") as running:
        yield running


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
async def test_faults_break_no_promise(own: Servers, seed: int) -> None:
    plan = Plan(seed, seconds=45, pace=600, pause=0.8)

    result = await run(plan, Single(own, random.Random(seed)))

    print("\n".join(report.timeline(result.record.faults)))
    assert list(report.verdict(result.violations)) == [report.KEPT]
    # What did not happen proves nothing.
    seen = result.summary()
    assert seen["faults"] >= 20
    assert min(seen["confirmed"], seen["events"], seen["rejected copies"]) >= 500


async def a_full_queue(stage: Stage) -> None:
    """The subscriber listens again when the broker has refused hundreds of events."""
    stage.witness.deafen()
    await stage.witness.fill()
    await stage.handling(2 * QUEUE_LENGTH, 60)
    stage.witness.listen()


# Where chance would bring about what shows a fault in some runs only.
ORDEALS: Mapping[str, Ordeal] = {"lost_on_a_nack": a_full_queue}


@pytest.mark.planted
@pytest.mark.timeout(300)
@pytest.mark.parametrize("planted", list(PLANTS))
async def test_a_planted_fault_is_found(own: Servers, planted: str) -> None:
    plan = Plan(5, seconds=20, pace=400, pause=0.7, planted=planted, settle=15)

    result = await run(plan, Single(own, random.Random(plan.seed)), ORDEALS.get(planted))

    print("\n".join(report.verdict(result.violations)))
    rules = {violation.rule for violation in result.violations}
    # That nothing comes of it at all would show in any test.
    assert rules - {"gave up", "stuck"}
