"""Any one server of the cluster killed under load: nothing lost, and events soon flow again.

It takes minutes, and is run by name: ``make cluster``.
"""

import asyncio
import random
from collections.abc import Iterator

import pytest

from outplan.testing.servers import Server
from tests.faults.chaos import report
from tests.faults.chaos.clustered import Clustered
from tests.faults.chaos.run import Plan, Stage, run
from tests.faults.clusters.cluster import Cluster, cluster
from tests.support.brokers import BROKERS, Broker, skip_without_docker

# What is promised for events to flow again.
OUTAGE_SECONDS = 10.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", params=BROKERS)
def whole(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    broker: Broker = request.param
    if broker == "4":
        skip_without_docker()
    with cluster(broker) as running:
        yield running


async def test_events_flow_again_within_ten_seconds_of_any_death(whole: Cluster) -> None:
    outages: dict[str, float] = {}

    async def one_after_the_other(stage: Stage) -> None:
        await stage.passage(60)
        primary = await asyncio.to_thread(whole.primary)
        for victim in (*whole.rabbits, primary):
            outages[victim.name] = await killed(victim, stage)
            await asyncio.to_thread(victim.start)
            await asyncio.to_thread(whole.healthy, 120)

    plan = Plan(seed=4, seconds=0, pace=400)
    result = await run(plan, Clustered(whole, random.Random(4)), one_after_the_other)

    print({name: round(seconds, 1) for name, seconds in outages.items()})
    assert list(report.verdict(result.violations)) == [report.KEPT]
    assert len(outages) == 4
    assert max(outages.values()) < OUTAGE_SECONDS
    assert result.summary()["events"] >= 1_000


async def killed(victim: Server, stage: Stage) -> float:
    """Kill it; how long it takes until an event of a command sent afterwards is heard."""
    await asyncio.to_thread(victim.kill)
    return await stage.passage(120)
