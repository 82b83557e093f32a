"""Ninety seconds of faults, in which every promise is kept; and planted ones, which are found."""

import random
from collections.abc import Iterator

import pytest

from service.testing.servers import Servers, start_servers
from tests.faults import report
from tests.faults.plants import PLANTS
from tests.faults.run import Plan, run
from tests.faults.single import Single


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


@pytest.mark.planted
@pytest.mark.timeout(300)
@pytest.mark.parametrize("planted", list(PLANTS))
async def test_a_planted_fault_is_found(own: Servers, planted: str) -> None:
    plan = Plan(5, seconds=20, pace=400, pause=0.7, planted=planted, settle=15)

    result = await run(plan, Single(own, random.Random(plan.seed)))

    print("\n".join(report.verdict(result.violations)))
    rules = {violation.rule for violation in result.violations}
    # That nothing comes of it at all would show in any test.
    assert rules - {"gave up", "stuck"}
