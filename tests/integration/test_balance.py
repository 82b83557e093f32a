"""Share the queues among workers that join, leave, die, and lose MongoDB."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from outplan.testing import Deployment
from outplan.testing.servers import Servers
from tests.support.partitions import (
    key_of,
    list_active,
    make_id,
    pick_slots,
    queues_of,
)
from tests.support.worker_process import WorkerProcess, start_worker
from tests.support.world import World, create_body

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PARTITIONS = 16
# A dead worker's announcement expires after 10 s, and the others look once a second.
EXPIRY_SECONDS = 10
# They take a second or two; a loaded machine may need more.
SLACK_SECONDS = 5


class Workers:
    """Run workers on a deployment, and look at what RabbitMQ lets each of them consume."""

    def __init__(
        self, stack: AsyncExitStack, servers: Servers, deployment: Deployment, partitions: int
    ) -> None:
        self._stack = stack
        self._servers = servers
        self._deployment = deployment
        self._partitions = partitions
        self.running: list[WorkerProcess] = []

    async def join(self, count: int = 1) -> None:
        """Start workers, one after the other; return when all of them are ready."""
        for _ in range(count):
            worker = await start_worker(self._deployment, OUTPLAN_PARTITIONS=str(self._partitions))
            self._stack.push_async_callback(worker.kill)
            await worker.wait_for_log("ready", seconds=90)
            self.running.append(worker)

    async def list_shares(self) -> dict[str, list[str]] | None:
        """Return each worker's partitions; None while a queue is not active exactly once."""
        active = await list_active(self._servers, self._deployment.prefix)
        names = {*queues_of(self._deployment.prefix, self._partitions), self.main}
        if active.keys() != names or any(len(channels) != 1 for channels in active.values()):
            return None
        shares: dict[str, list[str]] = {}
        for queue, [channel] in active.items():
            if queue != self.main or self._partitions == 1:
                shares.setdefault(channel, []).append(queue)
        return shares

    @property
    def main(self) -> str:
        return f"{self._deployment.prefix}.commands"

    async def wait_until_even(self, seconds: float = 60) -> None:
        """Wait until each partition is active once, and shares differ by one at most."""
        shares: dict[str, list[str]] | None = None
        workers = len(self.running)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    shares = await self.list_shares()
                    if shares is not None and len(shares) == workers:
                        sizes = [len(queues) for queues in shares.values()]
                        if max(sizes) - min(sizes) <= 1:
                            return
        except TimeoutError:
            raise AssertionError(f"{workers} workers, and shares {shares}") from None


@asynccontextmanager
async def open_workers(
    servers: Servers, deployment: Deployment, partitions: int = PARTITIONS
) -> AsyncIterator[Workers]:
    async with AsyncExitStack() as stack:
        yield Workers(stack, servers, deployment, partitions)


class Probes:
    """Send commands for one outplan of each partition, and see when their events come."""

    def __init__(self, world: World, partitions: int) -> None:
        self._world = world
        self._ids = [make_id(slot) for slot in pick_slots(partitions)]
        self._counter = 1_000
        self._sent: dict[str, tuple[int, float]] = {}

    async def create(self) -> None:
        sent = {
            await self._world.send(key_of("outplan_create", id_), create_body(id=id_))
            for id_ in self._ids
        }
        await self._world.wait_for_events(sent)

    async def send(self) -> list[str]:
        """Send an update to each partition; return their ids by partition."""
        self._counter += 1
        sent = []
        for n, id_ in enumerate(self._ids):
            body = {"id": id_, "try_interval": self._counter}
            sent.append(await self._world.send(key_of("outplan_update", id_), body))
            self._sent[sent[-1]] = n, time.monotonic()
        return sent

    async def measure(self, seconds: float) -> float:
        """Send an update to each partition; return how long the slowest event takes."""
        since = time.monotonic()
        sent = await self.send()
        async with asyncio.timeout(seconds):
            await self._world.wait_for_events(set(sent))
        return time.monotonic() - since

    @asynccontextmanager
    async def run(self, interval: float) -> AsyncIterator[dict[int, float]]:
        """Send for the block; yield the longest wait for an event of each partition, in seconds."""
        waits: dict[int, float] = dict.fromkeys(range(len(self._ids)), 0.0)
        stopped = asyncio.Event()
        arrived: set[str] = set()

        async def send_all() -> None:
            while not stopped.is_set():
                await self.send()
                await asyncio.sleep(interval)

        def note_arrivals() -> bool:
            now = time.monotonic()
            for event in self._world.events[-2 * len(self._ids) :]:
                id_ = event.message_id or ""
                if id_ in self._sent and id_ not in arrived:
                    arrived.add(id_)
                    partition, since = self._sent[id_]
                    waits[partition] = max(waits[partition], now - since)
            return stopped.is_set() and arrived >= self._sent.keys()

        self._sent.clear()
        sending = asyncio.create_task(send_all())
        noting = asyncio.create_task(self._world.wait_for(note_arrivals, seconds=120))
        try:
            yield waits
            stopped.set()
            await sending
            await self.send()  # The last events wake the other task.
            await noting
        finally:
            sending.cancel()
            noting.cancel()
            await asyncio.wait({sending, noting})


async def test_shares_are_even_while_workers_join_and_leave(
    servers: Servers, deployment: Deployment
) -> None:
    async with open_workers(servers, deployment) as workers:
        await workers.join()
        for _ in range(4):
            await workers.join()
            await workers.wait_until_even()
        # The first worker has the queue for bare keys, too; then it goes to the next one.
        assert await workers.running.pop(0).stop() == 0
        await workers.wait_until_even(EXPIRY_SECONDS)
        await workers.running.pop(1).kill()
        await workers.wait_until_even()
        assert await workers.running.pop().stop() == 0
        await workers.wait_until_even(EXPIRY_SECONDS)


async def test_a_killed_workers_partitions_wait_for_the_expiry_at_most(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    probes = Probes(world, PARTITIONS)
    async with open_workers(servers, deployment) as workers:
        await workers.join(3)
        await probes.create()
        await workers.wait_until_even()
        await workers.running.pop(1).kill()
        seconds = await probes.measure(seconds=60)
        print(f"after a kill {seconds:.1f} s")
        assert seconds < EXPIRY_SECONDS + SLACK_SECONDS
        await workers.wait_until_even(SLACK_SECONDS)


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_the_main_queue_has_standbys(
    servers: Servers, deployment: Deployment, world: World, how: str
) -> None:
    async with open_workers(servers, deployment, partitions=1) as workers:
        await workers.join(2)
        await probe_main(world)
        shares = await workers.list_shares()
        assert shares is not None
        assert len(shares) == 1
        await getattr(workers.running.pop(0), how)()
        since = time.monotonic()
        await probe_main(world)
        assert time.monotonic() - since < EXPIRY_SECONDS / 2


async def probe_main(world: World) -> None:
    id_ = make_id("c3")
    await world.wait_for_event(await world.send(key_of("outplan_create", id_), create_body(id=id_)))


async def test_the_workers_keep_their_shares_through_a_restart_of_mongodb(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    probes = Probes(world, PARTITIONS)
    async with open_workers(servers, deployment) as workers:
        await workers.join(3)
        await probes.create()
        await workers.wait_until_even()
        before = await workers.list_shares()
        await asyncio.to_thread(servers.mongodb.stop)
        # Longer than the expiry, so that every announcement is old when MongoDB is back.
        await asyncio.sleep(EXPIRY_SECONDS + 2)
        await asyncio.to_thread(servers.mongodb.start)
        await probes.measure(seconds=60)
        await workers.wait_until_even()
        # Nobody took the others for dead: the sessions are the same, and so are the shares.
        assert await workers.list_shares() == before


async def test_a_partition_that_moves_to_a_new_worker_pauses_briefly(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    probes = Probes(world, PARTITIONS)
    async with open_workers(servers, deployment) as workers:
        await workers.join(2)
        await probes.create()
        await workers.wait_until_even()
        async with probes.run(interval=0.1) as waits:
            await asyncio.sleep(1)
            undisturbed = max(waits.values())
            await workers.join()
            await workers.wait_until_even()
        longest = sorted(waits.values())
        print(f"undisturbed {undisturbed:.2f} s, with a join {longest[0]:.2f}..{longest[-1]:.2f} s")
        assert longest[-1] < EXPIRY_SECONDS
