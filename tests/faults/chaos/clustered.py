"""Three RabbitMQ nodes and a replica set of three, and what can be done to them."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from outplan.contract.topology import Topology
from outplan.testing.servers import Server, ServerFailed
from tests.faults.chaos.nemesis import Deed, Deeds
from tests.faults.clusters.cluster import Cluster
from tests.faults.clusters.nodes import RabbitNode

_MEND_SECONDS: Final = 120.0
# A node that comes back while the others are still noticing that it was gone may give up.
_STARTS: Final = 4


class Clustered:
    """The servers of a run; every deed leaves all of them running, if not yet in sync."""

    def __init__(self, cluster: Cluster, luck: random.Random) -> None:
        self.amqp_urls = tuple(node.url for node in cluster.rabbits)
        self.mongo_url = cluster.mongo_url
        self._cluster = cluster
        self._luck = luck

    def deeds(self, layout: Topology) -> Deeds:
        queue = layout.command_queues[0].name
        cluster, luck = self._cluster, self._luck

        def a_node() -> RabbitNode:
            return luck.choice(cluster.rabbits)

        def a_member() -> Server:
            return luck.choice(cluster.mongos)

        def the_leader() -> RabbitNode:
            return cluster.leader_of(queue)

        return {
            "RabbitMQ node killed": (3, "rabbitmq", self._killing(a_node)),
            "RabbitMQ node frozen": (3, "rabbitmq", self._freezing(a_node)),
            "queue leader's node killed": (3, "rabbitmq", self._killing(the_leader)),
            "queue leader moved": (6, "rabbitmq", self._doing(lambda: cluster.move_leader(queue))),
            "all RabbitMQ nodes killed": (1, "rabbitmq", self._kill_all_nodes),
            "mongod killed": (3, "mongodb", self._killing(a_member)),
            "mongod frozen": (3, "mongodb", self._freezing(a_member)),
            "primary killed": (4, "mongodb", self._killing(cluster.primary)),
            "primary steps down": (4, "mongodb", self._doing(lambda: cluster.step_down(2))),
        }

    async def remember_queues(self) -> None:
        """Have the nodes write new queues down now: they would forget them at a kill."""
        await asyncio.to_thread(self._cluster.write_down_queues)

    async def mend(self) -> None:
        """Have everything running and in sync."""
        await _insist(self._cluster.start)
        await asyncio.to_thread(self._cluster.healthy, _MEND_SECONDS)

    async def depth(self, prefix: str) -> int:
        """How many commands are in the queues, in hand or not."""
        node = self._cluster.rabbits[0]
        columns = ("--no-table-headers", "name", "messages")
        listed = await asyncio.to_thread(node.ctl, "list_queues", *columns)
        rows = (line.split() for line in listed.splitlines())
        return sum(int(n) for name, n in rows if name.startswith(f"{prefix}.commands"))

    def _killing(self, choose: Callable[[], Server]) -> Deed:
        async def kill() -> str:
            server = await asyncio.to_thread(choose)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(seconds := self._luck.uniform(0, 4))
            await _insist(server.start)
            return f"{server.name}, {seconds:.1f} s"

        return kill

    def _freezing(self, choose: Callable[[], Server]) -> Deed:
        async def freeze() -> str:
            server = await asyncio.to_thread(choose)
            await asyncio.to_thread(server.pause)
            await asyncio.sleep(seconds := self._luck.choice([0.5, 2, 6, 15]))
            await asyncio.to_thread(server.resume)
            # A node that was away for long may stay apart from the others by itself.
            await _insist(self._cluster.start)
            return f"{server.name}, {seconds:.1f} s"

        return freeze

    def _doing(self, act: Callable[[], Server]) -> Deed:
        async def do() -> str:
            return (await asyncio.to_thread(act)).name

        return do

    async def _kill_all_nodes(self) -> str:
        for node in self._cluster.rabbits:
            await asyncio.to_thread(node.kill)
        await _insist(self._cluster.start)
        return ""


async def _insist(start: Callable[[], None]) -> None:
    """Start what may give up, as whatever keeps it running would."""
    for _ in range(_STARTS - 1):
        with suppress(ServerFailed):
            return await asyncio.to_thread(start)
    return await asyncio.to_thread(start)
