"""One RabbitMQ and one MongoDB, and what can be done to them."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from outplan.contract.topology import Topology
from outplan.testing.servers import Server, ServerFailed, Servers
from tests.faults.chaos.nemesis import Deed, Deeds

_SYNC: Final = "[dets:sync(T) || T <- dets:all()]."
_CRASH_CHANNELS: Final = "[exit(P, kill) || P <- rabbit_channel:list(), rand:uniform(2) == 1], ok."


class Single:
    """The servers of a run; every deed on one leaves it running and taking work."""

    def __init__(self, servers: Servers, luck: random.Random) -> None:
        self.amqp_urls: tuple[str, ...] = (servers.rabbitmq.url,)
        self.mongo_url = servers.mongodb.url
        self._servers = servers
        self._luck = luck

    def deeds(self, layout: Topology) -> Deeds:
        rabbitmq, mongodb = self._servers.rabbitmq, self._servers.mongodb
        killed: Deeds = {"RabbitMQ killed": (2, "rabbitmq", self._killing(rabbitmq))}
        return {
            # After a crash it may spread outplans over the queues anew: see docs/reliability.md.
            **({} if layout.partitioner else killed),
            "RabbitMQ frozen": (3, "rabbitmq", self._freezing(rabbitmq)),
            "RabbitMQ restarted": (1, "rabbitmq", self._restarting(rabbitmq)),
            "connections closed by RabbitMQ": (4, "rabbitmq", self._close_connections),
            "channels crashed": (4, "rabbitmq", self._crash_channels),
            "memory alarm": (3, "rabbitmq", self._alarm),
            "mongod killed": (3, "mongodb", self._killing(mongodb)),
            "mongod frozen": (4, "mongodb", self._freezing(mongodb)),
            "primary steps down": (4, "mongodb", self._step_down),
        }

    async def remember_queues(self) -> None:
        """Have RabbitMQ write new queues down now: it would forget them at a kill."""
        await self._ctl("eval", _SYNC)

    async def mend(self) -> None:
        """Have everything running."""
        for server in (self._servers.rabbitmq, self._servers.mongodb):
            await asyncio.to_thread(server.start)

    async def depth(self, prefix: str) -> int:
        """How many commands are in the queues, in hand or not."""
        listed = await self._ctl("list_queues", "--no-table-headers", "name", "messages")
        rows = (line.split() for line in listed.splitlines())
        return sum(int(n) for name, n in rows if name.startswith(f"{prefix}.commands"))

    def _killing(self, server: Server) -> Deed:
        return self._interrupting(server.kill, server.start, 0, 2)

    def _freezing(self, server: Server) -> Deed:
        return self._interrupting(server.pause, server.resume, 0.2, 8)

    def _restarting(self, server: Server) -> Deed:
        return self._interrupting(server.stop, server.start, 0, 2)

    def _interrupting(
        self, end: Callable[[], None], begin: Callable[[], None], least: float, most: float
    ) -> Deed:
        async def interrupt() -> str:
            await asyncio.to_thread(end)
            await asyncio.sleep(seconds := self._luck.uniform(least, most))
            await asyncio.to_thread(begin)
            return f"{seconds:.1f} s"

        return interrupt

    async def _close_connections(self) -> str:
        await self._ctl("close_all_connections", "--global", "nemesis")
        return ""

    async def _crash_channels(self) -> str:
        await self._ctl("eval", _CRASH_CHANNELS)
        return "about every second one"

    async def _alarm(self) -> str:
        await self._ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        await asyncio.sleep(seconds := self._luck.uniform(0.5, 4))
        await self._ctl("set_vm_memory_high_watermark", "absolute", "2GB")
        return f"{seconds:.1f} s"

    async def _step_down(self) -> str:
        return await asyncio.to_thread(step_down, self.mongo_url)

    async def _ctl(self, *arguments: str) -> str:
        """Ask again where the broker is not all there yet."""
        for _ in range(20):
            try:
                return await asyncio.to_thread(self._servers.rabbitmq.ctl, *arguments)
            except ServerFailed:
                await asyncio.sleep(0.5)
        return await asyncio.to_thread(self._servers.rabbitmq.ctl, *arguments)


def step_down(mongo_url: str) -> str:
    """Have the primary step down for a second; a set of one elects it again."""
    with MongoClient[dict[str, Any]](mongo_url, serverSelectionTimeoutMS=20_000) as client:
        try:
            client.admin.command("replSetStepDown", 1, secondaryCatchUpPeriodSecs=0, force=True)
        except PyMongoError as error:
            return type(error).__name__  # The connection may go with it.
    return ""
