"""Run against three RabbitMQ nodes and a replica set of three, and inject faults into them."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from outplan.contract.topology import Topology
from outplan.testing.servers import Server, ServerFailed
from tests.faults.chaos.nemesis import Fault, Faults, Inject
from tests.faults.chaos.single_testbed import LIST_QUEUES, parse_command_count
from tests.faults.clusters.cluster import Cluster

_RESTORE_SECONDS: Final = 120.0
# A node may give up starting while the others have not noticed yet that it was gone.
_START_ATTEMPTS: Final = 4


class ClusterTestbed:
    """A `Testbed` of six servers; every fault leaves all of them running, if not yet in sync."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.amqp_urls = tuple(node.url for node in cluster.rabbits)
        self.mongo_url = cluster.mongo_url
        self._cluster = cluster
        self._rng = rng

    def faults(self, layout: Topology) -> Faults:
        queue = layout.command_queues[0].name
        cluster, rng = self._cluster, self._rng

        def pick_node() -> Server:
            return rng.choice(cluster.rabbits)

        def pick_member() -> Server:
            return rng.choice(cluster.mongos)

        def find_leader() -> Server:
            return cluster.leader_of(queue)

        move_leader = self._act(lambda: cluster.move_leader(queue))
        step_down = self._act(lambda: cluster.step_down(2))
        return {
            "RabbitMQ node killed": Fault(3, "rabbitmq", self._kill(pick_node)),
            "RabbitMQ node frozen": Fault(3, "rabbitmq", self._freeze(pick_node)),
            "queue leader's node killed": Fault(3, "rabbitmq", self._kill(find_leader)),
            "queue leader moved": Fault(6, "rabbitmq", move_leader),
            "all RabbitMQ nodes killed": Fault(1, "rabbitmq", self._kill_all_nodes),
            "mongod killed": Fault(3, "mongodb", self._kill(pick_member)),
            "mongod frozen": Fault(3, "mongodb", self._freeze(pick_member)),
            "primary killed": Fault(4, "mongodb", self._kill(cluster.primary)),
            "primary steps down": Fault(4, "mongodb", step_down),
        }

    async def persist_queues(self) -> None:
        await asyncio.to_thread(self._cluster.persist_queues)

    async def restore(self) -> None:
        """Start every server and wait until all are in sync."""
        await _start(self._cluster.start)
        await asyncio.to_thread(self._cluster.wait_until_healthy, _RESTORE_SECONDS)

    async def count_commands(self, prefix: str) -> int:
        listed = await asyncio.to_thread(self._cluster.rabbits[0].ctl, *LIST_QUEUES)
        return parse_command_count(listed, prefix)

    def _kill(self, choose: Callable[[], Server]) -> Inject:
        async def kill() -> str:
            server = await asyncio.to_thread(choose)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(seconds := self._rng.uniform(0, 4))
            await _start(server.start)
            return f"{server.name}, {seconds:.1f} s"

        return kill

    def _freeze(self, choose: Callable[[], Server]) -> Inject:
        async def freeze() -> str:
            server = await asyncio.to_thread(choose)
            await asyncio.to_thread(server.pause)
            await asyncio.sleep(seconds := self._rng.choice([0.5, 2, 6, 15]))
            await asyncio.to_thread(server.resume)
            # After a long pause a node may stop by itself.
            await _start(self._cluster.start)
            return f"{server.name}, {seconds:.1f} s"

        return freeze

    def _act(self, act: Callable[[], Server]) -> Inject:
        async def inject() -> str:
            return (await asyncio.to_thread(act)).name

        return inject

    async def _kill_all_nodes(self) -> str:
        for node in self._cluster.rabbits:
            await asyncio.to_thread(node.kill)
        await _start(self._cluster.start)
        return ""


async def _start(start: Callable[[], None]) -> None:
    """Start servers that may give up, several times if needed, as a supervisor would."""
    for _ in range(_START_ATTEMPTS - 1):
        with suppress(ServerFailed):
            return await asyncio.to_thread(start)
    return await asyncio.to_thread(start)
