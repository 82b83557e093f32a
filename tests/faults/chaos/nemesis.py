"""The nemesis: what may go wrong with processes, connections and servers, at random moments."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Protocol

from tests.faults.chaos.record import Fault, Record
from tests.faults.chaos.witness import Witness
from tests.faults.chaos.workers import Crew

# It returns what it did in detail, once it is over and mended.
Deed = Callable[[], Awaitable[str]]
# By name: each with its weight and what it touches. Two that touch the same never overlap.
Deeds = dict[str, tuple[int, str, Deed]]


class Connections(Protocol):
    """What connections go through, and where they can be hurt."""

    def cut(self) -> None: ...
    def stall(self) -> None: ...
    def resume(self) -> None: ...
    def strand(self) -> None: ...
    def release(self) -> None: ...


class Nemesis:
    """Does its deeds until it is told to stop, and notes them."""

    def __init__(
        self,
        luck: random.Random,
        crew: Crew,
        witness: Witness,
        connections: Mapping[str, Connections],
        servers: Deeds,
        record: Record,
    ) -> None:
        self._luck = luck
        self._crew = crew
        self._witness = witness
        self._record = record
        self._since = monotonic()
        self._busy: set[str] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._deeds: Deeds = {
            "worker killed": (10, "crew", self._kill_worker),
            "worker frozen": (4, "frozen", self._freeze_worker),
            "worker joins": (3, "joining", self._join),
            "worker leaves": (3, "leaving", self._leave),
            "subscriber deaf": (2, "witness", self._deafen),
            **servers,
        }
        for whose, each in connections.items():
            self._deeds |= {
                f"{whose} connections cut": (8, whose, self._cutting(each)),
                f"{whose} connections stalled": (3, whose, self._stalling(each)),
                f"{whose} connections half-open": (3, whose, self._stranding(each)),
            }

    async def run(self, until: asyncio.Event, pause: float) -> None:
        """Begin a deed every ``pause`` seconds or so, until the event; then await their ends."""
        while not await _happens(until, self._luck.expovariate(1 / pause)):
            await self._crew.replace_the_dead()
            free = {n: d for n, d in self._deeds.items() if d[1] not in self._busy}
            if free:
                self._begin(self._luck.choices(list(free), [d[0] for d in free.values()])[0])
        await asyncio.gather(*self._running)

    def _begin(self, name: str) -> None:
        _, target, deed = self._deeds[name]
        self._busy.add(target)
        task = asyncio.create_task(self._do(name, deed))
        self._running.add(task)

        def over(done: "asyncio.Task[None]") -> None:
            self._busy.discard(target)
            if done.cancelled() or done.exception() is None:
                self._running.discard(done)

        task.add_done_callback(over)

    async def _do(self, name: str, deed: Deed) -> None:
        at = round(monotonic() - self._since, 2)
        detail = await deed()
        self._record.add(Fault(at, name, detail))

    async def _kill_worker(self) -> str:
        if (worker := self._crew.any()) is None:
            return "none ran"
        await worker.kill()
        await self._crew.hire(self._luck.choice(["sound", "sound", "clock", "fragile"]))
        return ""

    async def _freeze_worker(self) -> str:
        """Mostly for moments; sometimes for longer than the broker waits for a heartbeat."""
        if (worker := self._crew.any()) is None:
            return "none ran"
        seconds = self._luck.choice([0.2, 1.0, 3.0, 8.0, 32.0])
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        worker.signal(signal.SIGCONT)
        return f"{seconds} s"

    async def _join(self) -> str:
        if len(self._crew.workers) > 5:
            return "there are enough"
        await self._crew.hire(self._luck.choice(["sound", "clock"]))
        return ""

    async def _leave(self) -> str:
        if len(self._crew.workers) < 3 or (worker := self._crew.any()) is None:
            return "there are few"
        self._crew.workers.remove(worker)
        worker.signal(signal.SIGCONT)
        return f"exit code {await worker.stop()}"

    async def _deafen(self) -> str:
        self._witness.deafen()
        await asyncio.sleep(seconds := self._luck.uniform(2, 6))
        self._witness.listen()
        return f"{seconds:.1f} s"

    def _cutting(self, connections: Connections) -> Deed:
        async def cut() -> str:
            connections.cut()
            return ""

        return cut

    def _stalling(self, connections: Connections) -> Deed:
        async def stall() -> str:
            connections.stall()
            await asyncio.sleep(seconds := self._luck.uniform(0.2, 4))
            connections.resume()
            return f"{seconds:.1f} s"

        return stall

    def _stranding(self, connections: Connections) -> Deed:
        async def strand() -> str:
            connections.strand()
            await asyncio.sleep(seconds := self._luck.uniform(0.2, 4))
            connections.release()
            return f"{seconds:.1f} s"

        return strand


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether it happens within that time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
