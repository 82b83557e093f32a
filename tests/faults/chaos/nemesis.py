"""Inject faults into processes, connections and servers at random moments."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from tests.faults.chaos.history import History, InjectedFault
from tests.faults.chaos.layouts import LayoutChanger
from tests.faults.chaos.recorder import Recorder
from tests.faults.chaos.workers import WorkerPool

_MOST_WORKERS: Final = 5

# Inject a fault, repair it, and return a detail for the timeline.
Inject = Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault. Faults with the same ``target`` never overlap; ``weight`` is its share.

    One that ``spares_changes`` is never injected during a change of the layout.
    """

    weight: int
    target: str
    inject: Inject
    spares_changes: bool = False


Faults = dict[str, Fault]


class Connections(Protocol):
    """Connections that the nemesis can break: a balancer."""

    def disconnect(self) -> None: ...
    def stall(self) -> None: ...
    def resume(self) -> None: ...
    def leave_half_open(self) -> None: ...
    def release(self) -> None: ...


class Nemesis:
    """Inject random faults, several at a time, and add them to the history."""

    def __init__(
        self,
        rng: random.Random,
        workers: WorkerPool,
        recorder: Recorder,
        layouts: LayoutChanger,
        connections: Mapping[str, Connections],
        server_faults: Faults,
        history: History,
    ) -> None:
        self._rng = rng
        self._workers = workers
        self._recorder = recorder
        self._layouts = layouts
        self._history = history
        self._busy: set[str] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._faults: Faults = {
            "worker killed": Fault(10, "workers", self._kill_worker),
            "worker frozen": Fault(4, "frozen worker", self._freeze_worker),
            "worker joins": Fault(3, "joining worker", self._add_worker),
            "worker leaves": Fault(3, "leaving worker", self._stop_worker),
            "worker killed for good": Fault(2, "leaving worker", self._kill_worker_for_good),
            "subscriber paused": Fault(2, "subscriber", self._pause_subscriber),
            **server_faults,
        }
        for owner, each in connections.items():
            self._faults |= {
                f"{owner} connections cut": Fault(8, owner, self._disconnect(each)),
                f"{owner} connections stalled": Fault(3, owner, self._stall(each)),
                f"{owner} connections half-open": Fault(3, owner, self._half_open(each)),
            }

    async def run(self, until: asyncio.Event, pause: float) -> None:
        """Inject a fault every ``pause`` seconds on average until the event is set.

        Return once the last fault is repaired.
        """
        while not await _wait(until, self._rng.expovariate(1 / pause)):
            free = {n: f for n, f in self._faults.items() if f.target not in self._busy}
            if free:
                weights = [fault.weight for fault in free.values()]
                self._start(self._rng.choices(list(free), weights)[0])
        await asyncio.gather(*self._running)

    async def change_layouts(self, until: asyncio.Event, pause: float) -> None:
        """Change the layout ``pause`` seconds on average after the change before."""
        while not await _wait(until, self._rng.expovariate(1 / pause)):
            at = self._history.now()
            name, detail = await self._layouts.change()
            self._history.add(InjectedFault(at, name, detail))

    def _start(self, name: str) -> None:
        fault = self._faults[name]
        self._busy.add(fault.target)
        task = asyncio.create_task(self._inject(name, fault))
        self._running.add(task)

        def on_done(done: "asyncio.Task[None]") -> None:
            self._busy.discard(fault.target)
            # Keep a failed task: run() raises its exception.
            if done.cancelled() or done.exception() is None:
                self._running.discard(done)

        task.add_done_callback(on_done)

    async def _inject(self, name: str, fault: Fault) -> None:
        at = self._history.now()
        if not fault.spares_changes:
            detail = await fault.inject()
        elif self._layouts.is_changing:
            detail = "not during a change of the layout"
        else:
            async with self._layouts.turn:
                detail = await fault.inject()
        self._history.add(InjectedFault(at, name, detail))

    async def _kill_worker(self) -> str:
        if (worker := self._workers.pick_running()) is None:
            return "no worker ran"
        await self._workers.kill(worker)
        kinds = ("healthy", "healthy", "skewed", "crashing")
        await self._workers.start(self._rng.choice(kinds))
        return ""

    async def _freeze_worker(self) -> str:
        """Freeze a worker for a moment, now and then past the broker's heartbeat timeout."""
        if (worker := self._workers.pick_running()) is None:
            return "no worker ran"
        seconds = self._rng.choice([0.2, 1.0, 3.0, 8.0, 32.0])
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        worker.signal(signal.SIGCONT)
        return f"{seconds} s"

    async def _add_worker(self) -> str:
        if len(self._workers.running) >= _MOST_WORKERS:
            return "enough workers"
        await self._workers.start(self._rng.choice(("healthy", "skewed")))
        return f"{len(self._workers.running)} workers"

    async def _stop_worker(self) -> str:
        workers = self._workers
        if len(workers.running) < 2 or (worker := workers.pick_running()) is None:
            return "too few workers"
        code = await workers.stop(worker)
        return f"exit code {code}, {len(workers.running)} workers"

    async def _kill_worker_for_good(self) -> str:
        workers = self._workers
        if len(workers.running) < 2 or (worker := workers.pick_running()) is None:
            return "too few workers"
        await workers.kill(worker)
        return f"{len(workers.running)} workers"

    async def _pause_subscriber(self) -> str:
        self._recorder.pause()
        await asyncio.sleep(seconds := self._rng.uniform(2, 6))
        self._recorder.resume()
        return f"{seconds:.1f} s"

    def _disconnect(self, connections: Connections) -> Inject:
        async def disconnect() -> str:
            connections.disconnect()
            return ""

        return disconnect

    def _stall(self, connections: Connections) -> Inject:
        return self._interrupt(connections.stall, connections.resume)

    def _half_open(self, connections: Connections) -> Inject:
        return self._interrupt(connections.leave_half_open, connections.release)

    def _interrupt(self, begin: Callable[[], None], end: Callable[[], None]) -> Inject:
        async def interrupt() -> str:
            begin()
            await asyncio.sleep(seconds := self._rng.uniform(0.2, 4))
            end()
            return f"{seconds:.1f} s"

        return interrupt


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    """Return whether the event is set within that time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
