"""Send hostile messages through RabbitMQ to a real worker.

``python -m tests.faults.fuzz.through_broker`` writes and reads raw frames. It expects of each
message the outcome that the same sequence has in process.
"""

import asyncio
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Final

import orjson
import typer

from outplan.contract.amqp import Delivery
from outplan.contract.topology import Binding, Queue, Topology, topology
from outplan.domain.codec import Outcome
from outplan.rabbitmq.frames import WireProperties
from outplan.rabbitmq.session import Session, open_session
from outplan.testing import Deployment
from outplan.testing.servers import start_servers
from tests.faults.fuzz.frame_checks import kept, property_bytes
from tests.faults.fuzz.fuzz_runner import Court
from tests.faults.fuzz.mutants import Mutant, Mutator
from tests.faults.fuzz.properties import content_header
from tests.support.process_state import resident
from tests.support.raw_publisher import RawPublisher, raw_publisher
from tests.support.worker_process import WorkerProcess, run_worker

_AT_ONCE: Final = 500
_STALLED_SECONDS: Final = 60
_QUORUM: Final = {"x-queue-type": "quorum"}
_END: Final = "the end"


@dataclass(slots=True)
class Findings:
    """What a run came to. ``faults`` are sentences; there must be none."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    seconds: float = 0.0


class Trial:
    """One run at one place: mutants in, everything that comes of them out."""

    def __init__(self, place: Deployment, seed: int | str) -> None:
        self._place = place
        self._layout = topology(place.prefix)
        self._replies = f"{place.prefix}.replies"
        self._witness = f"{place.prefix}.witness"
        self._mutator = Mutator(seed, passable=True, reply_to=self._replies.encode())
        self._court = Court(keep_all=True)
        self._order = (self._witness, self._replies, self._layout.rejected.name)
        self._seen: dict[str, dict[str, list[Delivery]]] = {
            queue: defaultdict(list) for queue in self._order
        }
        self._sent: list[tuple[Mutant, Outcome]] = []
        self.findings = Findings()

    @property
    def queues(self) -> list[str]:
        """Those that are not the service's own."""
        return [self._replies, self._witness]

    async def run(self, count: int) -> Findings:
        """Send ``count`` messages to a worker, stop it, and compare."""
        async with open_session(self._place.amqp_url, self._reading(), print) as session:
            reading = asyncio.create_task(self._read(session))
            async with (
                run_worker(self._place) as worker,
                raw_publisher(self._place.amqp_url) as publisher,
            ):
                since = time.monotonic()
                await self._send(publisher, worker, count)
                await self._end(publisher, worker)
                self.findings.seconds = time.monotonic() - since
            await asyncio.wait_for(reading, _STALLED_SECONDS)
        self.findings.faults += [*self._faults(), *_complaints(worker)]
        return self.findings

    def _reading(self) -> Topology:
        """The service's topology, turned round: what it publishes to is what is consumed."""
        own = tuple(Queue(name, _QUORUM) for name in self.queues)
        bindings = (Binding(self._layout.events.name, self._witness, "#"),)
        return replace(
            self._layout, command_queues=(*own, self._layout.rejected), bindings=bindings
        )

    async def _send(self, publisher: RawPublisher, worker: WorkerProcess, count: int) -> None:
        for first in range(0, count, _AT_ONCE):
            mutants = [self._mutator.next() for _ in range(min(_AT_ONCE, count - first))]
            outcomes = self._court.try_all(mutants)
            assert not self._court.report.faults, self._court.report.faults
            self._sent += zip(mutants, outcomes, strict=True)
            await publisher.publish(self._layout.commands.name, mutants)
            if not self.findings.memory and first >= count // 10:
                self.findings.memory.append(resident(worker.process.pid))

    async def _end(self, publisher: RawPublisher, worker: WorkerProcess) -> None:
        """Once the last command is answered, all are; what the worker has sent stands in queues."""
        last = content_header(
            {"message_id": b"last", "correlation_id": _END.encode(), "message_type": b"none",
             "reply_to": self._replies.encode()}, None, 0,
        )  # fmt: skip
        await publisher.publish(self._layout.commands.name, [Mutant("last", "last", last, b"")])
        replies, since = self._seen[self._replies], time.monotonic()
        before = -1
        while _END not in replies:
            if (seen := sum(map(len, self._seen.values()))) != before:
                before, since = seen, time.monotonic()
            assert time.monotonic() - since < _STALLED_SECONDS, (worker.log[-5:], worker.errors)
            await asyncio.sleep(0.05)
        self.findings.memory.append(resident(worker.process.pid))
        assert await worker.stop() == 0
        stop = content_header({"correlation_id": b"stop"}, None, 0)
        for queue in self._seen:
            await publisher.publish("", [Mutant("stop", queue, stop, b"")])

    async def _read(self, session: Session) -> None:
        waiting = set(self._seen)
        while waiting:
            for delivery in (batch := await session.receive(_AT_ONCE)):
                key = delivery.properties.correlation_id or ""
                if key == "stop":
                    waiting.discard(delivery.queue)
                self._seen[delivery.queue][key].append(delivery)
            await session.ack(batch[-1])

    # --- what came of it, against what should have ---

    def _faults(self) -> Iterator[str]:
        bodies: dict[str, bytes] = {}
        for n, (mutant, outcome) in enumerate(self._sent, 1):
            name = "duplicate" if outcome.duplicate else outcome.status
            self.findings.outcomes[name] += 1
            left = [self._seen[queue].pop(str(n), []) for queue in self._order]
            wanted = _wanted(outcome, self._replies)
            faults = (
                [*_wrong(left, outcome, bodies)]
                if _counts(left) == wanted
                else [f"{_counts(left)} events, replies and copies, not {wanted}"]
            )
            yield from (f"{n}: {fault}; {mutant.kind}, {mutant.body[:500]!r}" for fault in faults)
        for queue, rest in self._seen.items():
            if further := rest.keys() - {_END, "stop"}:
                yield f"{queue} has what nobody asked for: {sorted(further)[:5]}"


def _counts(left: list[list[Delivery]]) -> list[int]:
    return [len(deliveries) for deliveries in left]


def _wanted(outcome: Outcome, replies: str) -> list[int]:
    """How many events, replies and rejected copies there must be."""
    is_answered = outcome.delivery.properties.reply_to == replies
    return [int(outcome.event is not None), int(is_answered), int(outcome.problem is not None)]


def _wrong(left: list[list[Delivery]], outcome: Outcome, bodies: dict[str, bytes]) -> Iterator[str]:
    events, replies, copies = left
    yield from _wrong_event(events, outcome, bodies)
    yield from _wrong_reply(replies, outcome)
    yield from _wrong_copy(copies, outcome)


def _wrong_event(
    events: list[Delivery], outcome: Outcome, bodies: dict[str, bytes]
) -> Iterator[str]:
    for event in events:
        assert outcome.event is not None
        found = orjson.loads(event.body)
        if (found["id"], found["version"]) != (outcome.event.id, outcome.event.version):
            yield f"event {found['id']!r} in version {found['version']}"
        if bodies.setdefault(outcome.event.id, event.body) != event.body:
            yield "a repeat has other bytes"
        if event.properties.message_id != outcome.event.id:
            yield f"message_id {event.properties.message_id!r}"


def _wrong_reply(replies: list[Delivery], outcome: Outcome) -> Iterator[str]:
    for reply in replies:
        found = orjson.loads(reply.body)
        code = found["problem"]["code"] if "problem" in found else None
        expected = outcome.problem.code if outcome.problem else None
        told = (found["status"], found["duplicate"], code, found.get("version"))
        if told != (outcome.status, outcome.duplicate, expected, outcome.version):
            yield f"reply {told} to {outcome.status} {expected}"


def _wrong_copy(copies: list[Delivery], outcome: Outcome) -> Iterator[str]:
    for copy in copies:
        sent, found = outcome.delivery.properties, copy.properties
        assert isinstance(sent, WireProperties)
        assert isinstance(found, WireProperties)
        assert outcome.problem is not None
        if copy.body != outcome.delivery.body:
            yield "the copy's body is not what was sent"
        for name in sent.spans.keys() - {"table"}:
            if property_bytes(sent, name) != property_bytes(found, name):
                yield f"the copy's {name} is not what was sent"
        if not kept(sent, found):
            yield f"the copy's headers are not those sent: {sent.table!r}; {found.table!r}"
        if found.header("x-problem-code") != outcome.problem.code:
            yield f"{found.header('x-problem-code')}, not {outcome.problem.code}"


def _complaints(worker: WorkerProcess) -> Iterator[str]:
    """A worker that restarts its session, warns, or dies says so."""
    if worker.errors:
        yield f"the worker said {worker.errors[:500]}"
    for line in worker.log:
        if line.get("level") not in ("info", "debug") or line["event"] == "session_reopened":
            yield f"the worker logged {str(line)[:500]}"


async def hostile_round(amqp_url: str, mongo_url: str, count: int, seed: int | str) -> Findings:
    """Send ``count`` messages at a place of their own, which is cleared afterwards."""
    place = Deployment(amqp_url, mongo_url)
    trial = Trial(place, seed)
    try:
        return await trial.run(count)
    finally:
        await place.drop(trial.queues)


def main(
    count: Annotated[int, typer.Option(min=1, help="How many messages.")] = 50_000,
    seed: Annotated[int, typer.Option(help="The same seed makes the same messages.")] = 1,
) -> None:
    """Send hostile messages to a worker and say what became of them; exit 1 where it is wrong."""
    print(f"seed {seed}", flush=True)
    with start_servers() as servers:
        findings = asyncio.run(
            hostile_round(servers.rabbitmq.url, servers.mongodb.url, count, seed)
        )
    early, end = (size / 2**20 for size in findings.memory)
    print(f"{count:,} messages in {findings.seconds:.0f} s: {dict(findings.outcomes)}")
    print(f"the worker's resident memory after a tenth {early:.1f} MiB, at the end {end:.1f} MiB")
    for fault in findings.faults[:20]:
        print(f"FAULT: {fault}")
    print("NOT SOUND" if findings.faults else "sound")
    sys.exit(1 if findings.faults else 0)


if __name__ == "__main__":
    typer.run(main)
