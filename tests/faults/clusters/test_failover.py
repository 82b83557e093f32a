"""Check that no server's death loses anything, and that events flow again soon after it.

It takes minutes; run it by ``make cluster``.
"""

import asyncio
import random
from collections.abc import Iterator

import pytest

from outplan.testing.servers import Server
from tests.faults.chaos import report
from tests.faults.chaos.cluster_testbed import ClusterTestbed
from tests.faults.chaos.run import Plan, RunContext, run
from tests.faults.clusters.cluster import Cluster, start_cluster
from tests.support.brokers import BROKERS, Broker, skip_if_unavailable

# The promise for events to flow again.
OUTAGE_SECONDS = 10.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", params=BROKERS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    broker: Broker = request.param
    skip_if_unavailable(broker)
    with start_cluster(broker) as running:
        yield running


async def test_events_flow_again_within_ten_seconds_of_any_death(cluster: Cluster) -> None:
    outages: dict[str, float] = {}

    async def kill_one_by_one(context: RunContext) -> None:
        await context.measure_latency(60)
        primary = await asyncio.to_thread(cluster.primary)
        for victim in (*cluster.rabbits, primary):
            outages[victim.name] = await measure_outage(victim, context)
            await asyncio.to_thread(victim.start)
            await asyncio.to_thread(cluster.wait_until_healthy, 120)

    plan = Plan(seed=4, seconds=0, pace=400)
    result = await run(plan, ClusterTestbed(cluster, random.Random(4)), kill_one_by_one)

    print({name: round(seconds, 1) for name, seconds in outages.items()})
    assert list(report.render_violations(result.violations)) == [report.NO_VIOLATION]
    assert len(outages) == 4
    assert max(outages.values()) < OUTAGE_SECONDS
    assert result.summary()["events"] >= 1_000


async def measure_outage(victim: Server, context: RunContext) -> float:
    """Kill a server; return the seconds until the event of a command sent afterwards arrives."""
    await asyncio.to_thread(victim.kill)
    return await context.measure_latency(120)
