"""A run: publishers, workers and a witness at a place, the nemesis among them, and the verdict."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Final, Protocol

from outplan.contract.topology import Topology, topology
from tests.faults.chaos.checker import Violation, check
from tests.faults.chaos.load_publisher import Publisher
from tests.faults.chaos.nemesis import Connections, Deeds, Nemesis
from tests.faults.chaos.record import Record
from tests.faults.chaos.witness import Witness
from tests.faults.chaos.workers import Crew
from tests.support.balancer import Balancer, balanced
from tests.support.command_generator import Generator, Outplans
from tests.support.deployment import Deployment

_PUBLISHERS: Final = 4
_OUTPLANS: Final = 400
_WORKERS: Final = 3
# How long the witness may take to read all that is left.
_READ_SECONDS: Final = 240


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to be: its seed, its length, commands a second, seconds between faults.

    ``settle`` is how many seconds the queue may take to run dry once everything is whole again;
    ``planted`` names a fault in the service's code, see ``plants``. With more ``partitions`` than
    one, outplans are spread over as many queues.
    """

    seed: int
    seconds: float
    pace: float = 1_500
    pause: float = 1.0
    settle: float = 240
    planted: str = ""
    partitions: int = 1


class Grounds(Protocol):
    """Servers, and what can be done to them: see ``single`` and ``cluster``."""

    amqp_urls: tuple[str, ...]
    mongo_url: str

    def deeds(self, layout: Topology) -> Deeds: ...
    async def remember_queues(self) -> None: ...
    async def mend(self) -> None: ...
    async def depth(self, prefix: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Ways:
    """The ways to the broker that the parties take; the nemesis hurts the first two."""

    workers: Balancer
    publishers: Balancer
    witness: Balancer

    @property
    def connections(self) -> Mapping[str, Connections]:
        return {"workers'": self.workers, "publishers'": self.publishers}


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run."""

    record: Record
    violations: list[Violation]
    seconds: float

    def summary(self) -> Counter[str]:
        """How many commands the broker took, and what they came to."""
        record = self.record
        events = sum(s.collection == "outplan_events" for s in record.stored)
        return Counter(
            {
                "commands": len(record.sent),
                "confirmed": sum(s.verdict == "confirmed" for s in record.sent),
                "events": events,
                "events heard": len(record.heard),
                "replies": len(record.replied),
                "rejected copies": len(record.copied),
                "faults": len(record.faults),
            }
        )


@dataclass(frozen=True, slots=True)
class Stage:
    """What an ordeal can use of a run, and a publisher of its own."""

    crew: Crew
    witness: Witness
    publisher: Publisher
    record: Record

    async def passage(self, seconds: float) -> float:
        """How long a command that is sent now takes until its event is heard."""
        since = monotonic()
        await self.witness.heard(await self.publisher.send_last(), seconds)
        return monotonic() - since

    async def handling(self, count: int, seconds: float) -> None:
        """Await that so many more commands are sent, and all of them handled, whoever dies.

        TimeoutError if they are not.
        """
        enough = len(self.record.sent) + count
        async with asyncio.timeout(seconds), self.witness.database() as database:
            while len(self.record.sent) < enough:
                await asyncio.sleep(0.1)
            last = await self.publisher.send_last()
            while not await database["outplan_events"].find_one({"_id": last}):
                await self.crew.replace_the_dead()
                await asyncio.sleep(0.1)


# What is done to the servers while the publishers publish.
Ordeal = Callable[[Stage], Awaitable[None]]


async def run(plan: Plan, grounds: Grounds, ordeal: Ordeal | None = None) -> Result:
    """Run the plan and check its record; the nemesis is what it undergoes, or the `ordeal`."""
    async with (
        balanced(*grounds.amqp_urls) as workers,
        balanced(*grounds.amqp_urls) as publishers,
        balanced(*grounds.amqp_urls) as witness,
    ):
        return await _run(plan, grounds, Ways(workers, publishers, witness), ordeal)


async def _run(plan: Plan, grounds: Grounds, ways: Ways, ordeal: Ordeal | None) -> Result:
    since = monotonic()
    record = Record()
    stuck: list[Violation] = []
    luck = random.Random(plan.seed)
    place = Deployment(ways.workers.url, grounds.mongo_url)
    crew = Crew(place, luck, plan.planted, plan.partitions)
    witness = Witness(place, ways.witness.url, record)
    try:
        await (await crew.hire()).wait_for_log("ready")
        await witness.prepare()
        await grounds.remember_queues()
        async with _listening(witness):
            deeds = grounds.deeds(topology(place.prefix, plan.partitions))
            nemesis = Nemesis(luck, crew, witness, ways.connections, deeds, record)
            hire = _publishers(plan, ways.publishers.url, place, record)
            stage = Stage(crew, witness, hire("last", Outplans(plan.seed, 1), 1), record)
            await _fight(plan, hire, stage, ordeal or partial(_nemesis_for, plan, nemesis))
            stuck = await _settle(plan.settle, grounds, stage, place)
    finally:
        await crew.kill()
    found = [Violation("gave up", "worker", text) for text in crew.ended]
    return Result(record, [*stuck, *found, *check(record)], monotonic() - since)


Hire = Callable[[str, Outplans, float], Publisher]


def _publishers(plan: Plan, url: str, place: Deployment, record: Record) -> Hire:
    def hire(name: str, outplans: Outplans, pace: float) -> Publisher:
        generator = Generator(plan.seed, name, outplans)
        return Publisher(name, generator, url, place.prefix, record, pace)

    return hire


async def _fight(plan: Plan, hire: Hire, stage: Stage, ordeal: Ordeal) -> None:
    for _ in range(_WORKERS - 1):
        await stage.crew.hire()
    over = asyncio.Event()
    outplans = Outplans(plan.seed, _OUTPLANS)
    async with asyncio.TaskGroup() as group:
        for n in range(_PUBLISHERS):
            publisher = hire(f"p{n}", outplans, plan.pace / _PUBLISHERS)
            group.create_task(publisher.run(over))
        await ordeal(stage)
        over.set()


async def _nemesis_for(plan: Plan, nemesis: Nemesis, _stage: Stage) -> None:
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(nemesis.run(over, plan.pause))
        await asyncio.sleep(plan.seconds)
        over.set()


async def _settle(
    seconds: float, grounds: Grounds, stage: Stage, place: Deployment
) -> list[Violation]:
    """With everything whole again, let the queue run dry, and the witness read all."""
    await grounds.mend()
    await stage.crew.replace_the_dead()
    try:
        async with asyncio.timeout(seconds):
            # A broker that has just come back may not know yet what is in its queues.
            await stage.passage(seconds)
            while await grounds.depth(place.prefix):
                await stage.crew.replace_the_dead()
                await asyncio.sleep(0.5)
            await stage.crew.dismiss()
    except TimeoutError:
        left = await grounds.depth(place.prefix)
        return [Violation("stuck", place.prefix, f"{left} commands left after the run")]
    finally:
        await stage.crew.kill()
        async with asyncio.timeout(_READ_SECONDS):
            await stage.witness.finish()
    return []


@asynccontextmanager
async def _listening(witness: Witness) -> AsyncIterator[None]:
    listening = asyncio.create_task(witness.run())
    try:
        yield
    finally:
        listening.cancel()
