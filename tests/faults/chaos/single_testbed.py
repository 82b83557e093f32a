"""Run against one RabbitMQ and one mongod, and inject faults into them."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from outplan.testing.servers import Server, ServerFailed, Servers
from tests.faults.chaos.nemesis import Fault, Faults, Inject
from tests.faults.chaos.queue_counts import LIST_QUEUES

_SYNC: Final = "[dets:sync(T) || T <- dets:all()]."
_CRASH_CHANNELS: Final = "[exit(P, kill) || P <- rabbit_channel:list(), rand:uniform(2) == 1], ok."


class SingleTestbed:
    """A `Testbed` of two servers; every fault leaves its server running and taking work."""

    order_slack = 0.0

    def __init__(self, servers: Servers, rng: random.Random) -> None:
        self.amqp_urls: tuple[str, ...] = (servers.rabbitmq.url,)
        self.mongo_url = servers.mongodb.url
        self._servers = servers
        self._rng = rng

    def faults(self, _prefix: str) -> Faults:
        rabbitmq, mongodb = self._servers.rabbitmq, self._servers.mongodb
        return {
            "RabbitMQ killed": Fault(2, "rabbitmq", self._kill(rabbitmq)),
            "RabbitMQ frozen": Fault(3, "rabbitmq", self._freeze(rabbitmq)),
            "RabbitMQ restarted": Fault(1, "rabbitmq", self._restart(rabbitmq)),
            "connections closed by RabbitMQ": Fault(4, "rabbitmq", self._close_connections),
            "channels crashed": Fault(4, "rabbitmq", self._crash_channels),
            "memory alarm": Fault(3, "rabbitmq", self._raise_memory_alarm),
            "mongod killed": Fault(3, "mongodb", self._kill(mongodb)),
            "mongod frozen": Fault(4, "mongodb", self._freeze(mongodb)),
            "primary steps down": Fault(4, "mongodb", self._step_down),
        }

    async def persist_queues(self) -> None:
        await self._ctl("eval", _SYNC)

    async def restore(self) -> None:
        for server in (self._servers.rabbitmq, self._servers.mongodb):
            await asyncio.to_thread(server.start)

    async def list_queues(self) -> str:
        return await self._ctl(*LIST_QUEUES)

    def _kill(self, server: Server) -> Inject:
        return self._interrupt(server.kill, server.start, 0, 2)

    def _freeze(self, server: Server) -> Inject:
        return self._interrupt(server.pause, server.resume, 0.2, 8)

    def _restart(self, server: Server) -> Inject:
        return self._interrupt(server.stop, server.start, 0, 2)

    def _interrupt(
        self, end: Callable[[], None], begin: Callable[[], None], least: float, most: float
    ) -> Inject:
        async def interrupt() -> str:
            await asyncio.to_thread(end)
            await asyncio.sleep(seconds := self._rng.uniform(least, most))
            await asyncio.to_thread(begin)
            return f"{seconds:.1f} s"

        return interrupt

    async def _close_connections(self) -> str:
        await self._ctl("close_all_connections", "--global", "nemesis")
        return ""

    async def _crash_channels(self) -> str:
        await self._ctl("eval", _CRASH_CHANNELS)
        return "about half of them"

    async def _raise_memory_alarm(self) -> str:
        await self._ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        await asyncio.sleep(seconds := self._rng.uniform(0.5, 4))
        await self._ctl("set_vm_memory_high_watermark", "absolute", "2GB")
        return f"{seconds:.1f} s"

    async def _step_down(self) -> str:
        return await asyncio.to_thread(step_down, self.mongo_url)

    async def _ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl; retry while the broker is still starting."""
        for _ in range(20):
            try:
                return await asyncio.to_thread(self._servers.rabbitmq.ctl, *arguments)
            except ServerFailed:
                await asyncio.sleep(0.5)
        return await asyncio.to_thread(self._servers.rabbitmq.ctl, *arguments)


def step_down(mongo_url: str) -> str:
    """Have the primary step down for a second; a set of one elects it again.

    Return the error that a broken connection may cause, or "".
    """
    with MongoClient[dict[str, Any]](mongo_url, serverSelectionTimeoutMS=20_000) as client:
        try:
            client.admin.command("replSetStepDown", 1, secondaryCatchUpPeriodSecs=0, force=True)
        except PyMongoError as error:
            return type(error).__name__
    return ""
