"""Run publishers and workers under faults, record what happens, and check the history."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Final, Protocol

from outplan.testing import Deployment
from tests.faults.chaos.checker import Violation, check
from tests.faults.chaos.history import Document, History, OrderSlack
from tests.faults.chaos.layouts import LayoutChanger
from tests.faults.chaos.load_publisher import Backlog, LoadPublisher
from tests.faults.chaos.nemesis import Connections, Faults, Nemesis
from tests.faults.chaos.queue_counts import parse_command_counts
from tests.faults.chaos.recorder import Recorder
from tests.faults.chaos.workers import WorkerPool
from tests.support.balancer import Balancer, run_balancer
from tests.support.command_generator import Generator, Outplans

_PUBLISHERS: Final = 4
_OUTPLANS: Final = 400
_WORKERS: Final = 3
# The time that the recorder has to drain its queues at the end.
_DRAIN_SECONDS: Final = 240


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters of a run.

    ``pace`` is commands a second, ``pause`` seconds between faults. ``settle`` is how many seconds
    the command queues may take to empty once all faults are repaired. ``planted`` names a fault in
    the service's code, see ``plants``. ``partitions`` is the number at the start, ``changes`` the
    seconds between two changes of it, or 0 for none.
    """

    seed: int
    seconds: float
    pace: float = 1_500
    pause: float = 1.0
    settle: float = 240
    planted: str = ""
    partitions: int = 1
    changes: float = 0


class Testbed(Protocol):
    """Servers under test, and the faults that can be injected into them.

    ``order_slack`` is the seconds within which they may change the order of two commands that come
    over different connections while the layout changes.
    """

    amqp_urls: tuple[str, ...]
    mongo_url: str
    order_slack: float

    def faults(self, prefix: str) -> Faults: ...

    async def persist_queues(self) -> None:
        """Have RabbitMQ write new queue definitions to disk: a kill would lose them."""
        ...

    async def restore(self) -> None:
        """Start every server and wait until all take work."""
        ...

    async def list_queues(self) -> str:
        """Return rabbitmqctl's answer to ``queue_counts.LIST_QUEUES``."""
        ...


@dataclass(frozen=True, slots=True)
class Balancers:
    """The balancers in front of the broker; the nemesis breaks connections of the first two."""

    workers: Balancer
    publishers: Balancer
    recorder: Balancer

    @property
    def breakable(self) -> Mapping[str, Connections]:
        return {"workers'": self.workers, "publishers'": self.publishers}


@dataclass(frozen=True, slots=True)
class Result:
    """A run's history, its violations, how many seconds it took, and the workers' log lines."""

    history: History
    violations: list[Violation]
    seconds: float
    logs: list[Document]

    def summary(self) -> Counter[str]:
        """Count commands and their effects."""
        history = self.history
        return Counter(
            {
                "commands": len(history.sent),
                "confirmed": sum(s.outcome == "confirmed" for s in history.sent),
                "events": sum(d.collection == "outplan_events" for d in history.documents),
                "events received": len(history.events),
                "replies": len(history.replies),
                "rejected copies": len(history.copies),
                "faults": len(history.faults),
                "layout changes": sum(f.name.startswith("layout") for f in history.faults),
            }
        )


@dataclass(frozen=True, slots=True)
class RunContext:
    """The parts of a run that a `Disruption` may use; ``publisher`` is its own."""

    workers: WorkerPool
    recorder: Recorder
    layouts: LayoutChanger
    publisher: LoadPublisher
    history: History

    async def measure_latency(self, seconds: float) -> float:
        """Send a command and return the seconds until its event arrives.

        Raises TimeoutError after ``seconds``.
        """
        since = monotonic()
        await self.recorder.wait_for_event(await self.publisher.send_marker(), seconds)
        return monotonic() - since

    async def wait_until_handled(self, count: int, seconds: float) -> None:
        """Wait until ``count`` more commands are sent and handled.

        Raises TimeoutError after ``seconds``.
        """
        async with asyncio.timeout(seconds), self.recorder.open_database() as database:
            await self.wait_until_sent(count)
            marker = await self.publisher.send_marker()
            while not await database["outplan_events"].find_one({"_id": marker}):
                await asyncio.sleep(0.1)

    async def wait_until_sent(self, count: int) -> None:
        """Wait until ``count`` more commands are sent."""
        enough = len(self.history.sent) + count
        while len(self.history.sent) < enough:
            await asyncio.sleep(0.1)


# Do something to the service while the publishers publish.
Disruption = Callable[[RunContext], Awaitable[None]]
# Make a publisher from its name, its outplans and its commands a second.
MakePublisher = Callable[[str, Outplans, float], LoadPublisher]


async def run(plan: Plan, testbed: Testbed, disruption: Disruption | None = None) -> Result:
    """Run the plan under the disruption, by default the nemesis, and check the history."""
    async with (
        run_balancer(*testbed.amqp_urls) as workers,
        run_balancer(*testbed.amqp_urls) as publishers,
        run_balancer(*testbed.amqp_urls) as recorder,
    ):
        return await _run(plan, testbed, Balancers(workers, publishers, recorder), disruption)


async def _run(
    plan: Plan, testbed: Testbed, balancers: Balancers, disruption: Disruption | None
) -> Result:
    since = monotonic()
    history = History()
    history.add(OrderSlack(testbed.order_slack))
    backlog = Backlog(history)
    rng = random.Random(plan.seed)
    deployment = Deployment(balancers.workers.url, testbed.mongo_url)
    workers = WorkerPool(deployment, rng, plan.planted)
    layouts = LayoutChanger(deployment, rng, plan.partitions, plan.planted)
    recorder = Recorder(deployment, balancers.recorder.url, history)

    def make_publisher(name: str, outplans: Outplans, pace: float) -> LoadPublisher:
        generator = Generator(plan.seed, name, outplans)
        url = balancers.publishers.url
        return LoadPublisher(name, generator, url, deployment.prefix, history, backlog, pace)

    try:
        await (await workers.start(partitions=plan.partitions)).wait_for_log("ready")
        await recorder.declare_queues()
        await testbed.persist_queues()
        async with _record(recorder):
            faults = testbed.faults(deployment.prefix)
            nemesis = Nemesis(rng, workers, recorder, layouts, balancers.breakable, faults, history)
            marker = make_publisher("marker", Outplans(plan.seed, 1), 1)
            context = RunContext(workers, recorder, layouts, marker, history)
            disrupt = disruption or partial(_run_nemesis, plan, nemesis)
            await _publish_during(disrupt, plan, make_publisher, context)
            found = await _settle(plan.settle, testbed, context, deployment.prefix)
    finally:
        await layouts.kill()
        await workers.kill_all()
    found += [Violation("worker failed", "worker", text) for text in workers.unexpected_exits]
    found += [Violation("layout change failed", "command", text) for text in layouts.failures]
    seconds = monotonic() - since
    return Result(history, [*found, *check(history)], seconds, workers.read_logs())


async def _publish_during(
    disruption: Disruption, plan: Plan, make_publisher: MakePublisher, context: RunContext
) -> None:
    context.workers.supervise()
    for _ in range(_WORKERS - 1):
        await context.workers.start()
    over = asyncio.Event()
    outplans = Outplans(plan.seed, _OUTPLANS)
    async with asyncio.TaskGroup() as group:
        for n in range(_PUBLISHERS):
            publisher = make_publisher(f"p{n}", outplans, plan.pace / _PUBLISHERS)
            group.create_task(publisher.run(over))
        await disruption(context)
        over.set()


async def _run_nemesis(plan: Plan, nemesis: Nemesis, _context: RunContext) -> None:
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(nemesis.run(over, plan.pause))
        if plan.changes:
            group.create_task(nemesis.change_layouts(over, plan.changes))
        await asyncio.sleep(plan.seconds)
        over.set()


async def _settle(
    seconds: float, testbed: Testbed, context: RunContext, prefix: str
) -> list[Violation]:
    """Restore the servers, finish a change of the layout, and wait until all queues are empty.

    Finish the history, and return what is left.
    """
    await testbed.restore()
    await context.layouts.finish()
    try:
        async with asyncio.timeout(seconds):
            # A broker that has just come back may count its queues wrong: send a command first.
            await context.measure_latency(seconds)
            while sum(parse_command_counts(await testbed.list_queues(), prefix).values()):
                await asyncio.sleep(0.5)
            await context.workers.stop_all()
    except TimeoutError:
        listed = await testbed.list_queues()
        return [Violation("stuck", prefix, f"commands left after the run:\n{listed}")]
    finally:
        await context.workers.kill_all()
        async with asyncio.timeout(_DRAIN_SECONDS):
            await context.recorder.finish()
    queues = parse_command_counts(await testbed.list_queues(), prefix)
    unsteady = await context.layouts.find_unsteady(queues.keys())
    return [Violation("layout not steady", prefix, text) for text in unsteady]


@asynccontextmanager
async def _record(recorder: Recorder) -> AsyncIterator[None]:
    recording = asyncio.create_task(recorder.run())
    try:
        yield
    finally:
        recording.cancel()
        await asyncio.wait({recording})
