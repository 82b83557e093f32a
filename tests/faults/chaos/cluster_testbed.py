"""Run against three RabbitMQ nodes and a replica set of three, and inject faults into them."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from outplan.testing.servers import Server, ServerFailed
from tests.faults.chaos.nemesis import Fault, Faults, Inject
from tests.faults.chaos.queue_counts import LIST_QUEUES, parse_command_counts
from tests.faults.clusters.cluster import Cluster

_RESTORE_SECONDS: Final = 120.0
_LEADER_SECONDS: Final = 20.0
# A node may give up starting while the others have not noticed yet that it was gone.
_START_ATTEMPTS: Final = 4


class ClusterTestbed:
    """A `Testbed` of six servers; every fault leaves all of them running, if not yet in sync."""

    order_slack = 1.0

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.amqp_urls = tuple(node.url for node in cluster.rabbits)
        self.mongo_url = cluster.mongo_url
        self._cluster = cluster
        self._rng = rng

    def faults(self, prefix: str) -> Faults:
        cluster, rng = self._cluster, self._rng
        # With Khepri, a frozen node routes by former bindings until it has caught up: the contract
        # promises no order then.
        routes_stale = not cluster.rabbits[0].version.startswith("3.")

        def pick_node() -> Server:
            return rng.choice(cluster.rabbits)

        def pick_member() -> Server:
            return rng.choice(cluster.mongos)

        def find_leader() -> Server:
            return cluster.leader_of(self._pick_queue(prefix), _LEADER_SECONDS)

        def move_leader() -> Server:
            return cluster.move_leader(self._pick_queue(prefix), _LEADER_SECONDS)

        step_down = self._act(lambda: cluster.step_down(2))
        return {
            "RabbitMQ node killed": Fault(3, "rabbitmq", self._kill(pick_node)),
            "RabbitMQ node frozen": Fault(
                3, "rabbitmq", self._freeze(pick_node), spares_changes=routes_stale
            ),
            "queue leader's node killed": Fault(3, "rabbitmq", self._kill(find_leader)),
            "queue leader moved": Fault(6, "rabbitmq", self._act(move_leader)),
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

    async def list_queues(self) -> str:
        return await asyncio.to_thread(self._cluster.rabbits[0].ctl, *LIST_QUEUES)

    def _pick_queue(self, prefix: str) -> str:
        """Pick a command queue that exists; a change of the layout may delete it at any time."""
        listed = self._cluster.rabbits[0].ctl(*LIST_QUEUES)
        return self._rng.choice(list(parse_command_counts(listed, prefix)))

    def _kill(self, choose: Callable[[], Server]) -> Inject:
        async def kill() -> str:
            if (server := await _choose(choose)) is None:
                return "no such server"
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(seconds := self._rng.uniform(0, 4))
            await _start(server.start)
            return f"{server.name}, {seconds:.1f} s"

        return kill

    def _freeze(self, choose: Callable[[], Server]) -> Inject:
        async def freeze() -> str:
            if (server := await _choose(choose)) is None:
                return "no such server"
            await asyncio.to_thread(server.pause)
            await asyncio.sleep(seconds := self._rng.choice([0.5, 2, 6, 15]))
            await asyncio.to_thread(server.resume)
            # After a long pause a node may stop by itself.
            await _start(self._cluster.start)
            return f"{server.name}, {seconds:.1f} s"

        return freeze

    def _act(self, act: Callable[[], Server]) -> Inject:
        async def inject() -> str:
            server = await _choose(act)
            return server.name if server else "not possible"

        return inject

    async def _kill_all_nodes(self) -> str:
        for node in self._cluster.rabbits:
            await asyncio.to_thread(node.kill)
        await _start(self._cluster.start)
        return ""


async def _choose(choose: Callable[[], Server]) -> Server | None:
    """Return None if the servers have no answer: a queue is gone, or a cluster is not in sync."""
    with suppress(ServerFailed):
        return await asyncio.to_thread(choose)
    return None


async def _start(start: Callable[[], None]) -> None:
    """Start servers that may give up, several times if needed, as a supervisor would."""
    for _ in range(_START_ATTEMPTS - 1):
        with suppress(ServerFailed):
            return await asyncio.to_thread(start)
    return await asyncio.to_thread(start)
