"""Send hostile messages through RabbitMQ to a real worker.

``python -m tests.faults.fuzz.through_broker`` writes and reads raw frames. It expects of each
message the outcome that the same sequence has in process. Then it sends hostile messages to a
subscriber, to ``outplan watch`` and to ``outplan rejected``.
"""

import asyncio
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final

import orjson
import typer

from outplan.contract.amqp import Delivery
from outplan.contract.topology import build_topology
from outplan.domain.codec import Outcome
from outplan.rabbitmq.frames import WireProperties
from outplan.rabbitmq.session import Session
from outplan.testing import Deployment
from outplan.testing.servers import start_servers
from tests.faults.fuzz.frame_checks import (
    check_delivery_readable,
    has_same_headers,
    property_bytes,
)
from tests.faults.fuzz.fuzz_runner import FuzzRunner
from tests.faults.fuzz.mutants import Mutant, Mutator
from tests.faults.fuzz.readers_through_broker import run_readers
from tests.support.observer_queues import ObserverQueues
from tests.support.process_state import resident_bytes
from tests.support.raw_message import RawMessage, encode_content_header
from tests.support.raw_publisher import RawPublisher, open_raw_publisher
from tests.support.worker_process import WorkerProcess, run_worker

_BATCH: Final = 500
_STALLED_SECONDS: Final = 60
_LAST: Final = "last"
_STOP: Final = "stop"


@dataclass(slots=True)
class BrokerReport:
    """Results of a run; ``failures`` must be empty.

    ``memory`` is the worker's resident bytes after a tenth of the messages and at the end.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    seconds: float = 0.0


class BrokerRun:
    """Publish mutants to a worker, consume everything that it publishes, and compare."""

    def __init__(self, deployment: Deployment, seed: int | str) -> None:
        self._deployment = deployment
        self._commands = build_topology(deployment.prefix).commands.name
        self.queues = ObserverQueues(deployment.prefix)
        self._mutator = Mutator(seed, publishable=True, reply_to=self.queues.replies.encode())
        self._runner = FuzzRunner(remember_all=True)
        self._order = (self.queues.events, self.queues.replies, self.queues.rejected)
        # By queue and correlation id.
        self._received: dict[str, dict[str, list[Delivery]]] = {
            queue: defaultdict(list) for queue in self._order
        }
        self._sent: list[tuple[Mutant, Outcome]] = []
        self.report = BrokerReport()

    async def run(self, count: int) -> BrokerReport:
        """Send ``count`` messages to a worker, stop it, and compare."""
        url = self._deployment.amqp_url
        async with self.queues.open_session(url) as session:
            receiving = asyncio.create_task(self._receive(session))
            async with run_worker(self._deployment) as worker, open_raw_publisher(url) as publisher:
                since = time.monotonic()
                await self._send(publisher, worker, count)
                await self._finish(publisher, worker)
                self.report.seconds = time.monotonic() - since
            await asyncio.wait_for(receiving, _STALLED_SECONDS)
        self.report.failures += [*self._compare(), *_find_complaints(worker)]
        return self.report

    async def _send(self, publisher: RawPublisher, worker: WorkerProcess, count: int) -> None:
        for first in range(0, count, _BATCH):
            mutants = [self._mutator.next() for _ in range(min(_BATCH, count - first))]
            outcomes = self._runner.run_batch(mutants)
            assert not self._runner.report.failures, self._runner.report.failures
            self._sent += zip(mutants, outcomes, strict=True)
            await publisher.publish(self._commands, mutants)
            if not self.report.memory and first >= count // 10:
                self.report.memory.append(resident_bytes(worker.process.pid))

    async def _finish(self, publisher: RawPublisher, worker: WorkerProcess) -> None:
        """Wait for the reply to a last command, stop the worker, and end the receiving."""
        last = encode_content_header(
            {"message_id": b"last", "correlation_id": _LAST.encode(), "message_type": b"none",
             "reply_to": self.queues.replies.encode()}, None, 0,
        )  # fmt: skip
        await publisher.publish(self._commands, [RawMessage("last", last, b"")])
        replies, since = self._received[self.queues.replies], time.monotonic()
        before = -1
        while _LAST not in replies:
            if (count := sum(map(len, self._received.values()))) != before:
                before, since = count, time.monotonic()
            assert time.monotonic() - since < _STALLED_SECONDS, (worker.log[-5:], worker.errors)
            await asyncio.sleep(0.05)
        self.report.memory.append(resident_bytes(worker.process.pid))
        assert await worker.stop() == 0
        stop = encode_content_header({"correlation_id": _STOP.encode()}, None, 0)
        for queue in self._order:
            await publisher.publish("", [RawMessage(queue, stop, b"")])

    async def _receive(self, session: Session) -> None:
        waiting = set(self._order)
        while waiting:
            for delivery in (batch := await session.receive(_BATCH)):
                key = delivery.properties.correlation_id or ""
                if key == _STOP:
                    waiting.discard(delivery.queue)
                self._received[delivery.queue][key].append(delivery)
            await session.ack(batch[-1])

    def _compare(self) -> Iterator[str]:
        """Yield every difference from the outcomes in process."""
        bodies: dict[str, bytes] = {}
        for n, (mutant, outcome) in enumerate(self._sent, 1):
            name = "duplicate" if outcome.duplicate else outcome.status
            self.report.outcomes[name] += 1
            received = [self._received[queue].pop(str(n), []) for queue in self._order]
            expected = _expected_counts(outcome, self.queues.replies)
            counts = [len(deliveries) for deliveries in received]
            if counts == expected:
                failures = [*_check_received(received, outcome, bodies)]
            else:
                failures = [f"{counts} events, replies and copies, expected {expected}"]
            for failure in failures:
                yield f"message {n}: {failure}; {mutant.kind}, {mutant.body[:500]!r}"
        for queue, rest in self._received.items():
            if unexpected := rest.keys() - {_LAST, _STOP}:
                yield f"{queue} has unexpected messages: {sorted(unexpected)[:5]}"


def _expected_counts(outcome: Outcome, replies: str) -> list[int]:
    """Return how many events, replies and rejected copies the outcome must have."""
    has_reply = outcome.delivery.reply_to == replies
    return [int(outcome.event is not None), int(has_reply), int(outcome.problem is not None)]


def _check_received(
    received: list[list[Delivery]], outcome: Outcome, bodies: dict[str, bytes]
) -> Iterator[str]:
    events, replies, copies = received
    for delivery in (*events, *replies):
        yield from check_delivery_readable(delivery)
    yield from _check_events(events, outcome, bodies)
    yield from _check_replies(replies, outcome)
    yield from _check_copies(copies, outcome)


def _check_events(
    events: list[Delivery], outcome: Outcome, bodies: dict[str, bytes]
) -> Iterator[str]:
    for delivery in events:
        assert outcome.event is not None
        event = orjson.loads(delivery.body)
        if (event["id"], event["version"]) != (outcome.event.id, outcome.event.version):
            yield f"event {event['id']!r} in version {event['version']}"
        if bodies.setdefault(outcome.event.id, delivery.body) != delivery.body:
            yield "a repeat has other bytes"
        if delivery.properties.message_id != outcome.event.id:
            yield f"message_id {delivery.properties.message_id!r}"


def _check_replies(replies: list[Delivery], outcome: Outcome) -> Iterator[str]:
    for delivery in replies:
        reply = orjson.loads(delivery.body)
        code = reply["problem"]["code"] if "problem" in reply else None
        expected_code = outcome.problem.code if outcome.problem else None
        found = (reply["status"], reply["duplicate"], code, reply.get("version"))
        expected = (outcome.status, outcome.duplicate, expected_code, outcome.version)
        if found != expected:
            yield f"reply {found}, expected {expected}"


def _check_copies(copies: list[Delivery], outcome: Outcome) -> Iterator[str]:
    for copy in copies:
        sent, found = outcome.delivery.properties, copy.properties
        assert isinstance(sent, WireProperties)
        assert isinstance(found, WireProperties)
        assert outcome.problem is not None
        if copy.body != outcome.delivery.body:
            yield "the copy's body differs from the original"
        for name in sent.spans.keys() - {"table"}:
            if property_bytes(sent, name) != property_bytes(found, name):
                yield f"the copy's {name} differs from the original"
        if not has_same_headers(sent, found):
            yield f"the copy's headers differ from the original: {sent.table!r}; {found.table!r}"
        if found.header("x-problem-code") != outcome.problem.code:
            yield f"code {found.header('x-problem-code')}, expected {outcome.problem.code}"


def _find_complaints(worker: WorkerProcess) -> Iterator[str]:
    """Yield the worker's stderr, warnings, errors and session restarts."""
    if worker.errors:
        yield f"the worker wrote to stderr: {worker.errors[:500]}"
    for line in worker.log:
        if line.get("level") not in ("info", "debug") or line["event"] == "session_reopened":
            yield f"the worker logged {str(line)[:500]}"


async def run_through_broker(
    amqp_url: str, mongo_url: str, count: int, seed: int | str
) -> BrokerReport:
    """Send ``count`` messages in a deployment of their own, and delete it afterwards."""
    deployment = Deployment(amqp_url, mongo_url)
    broker_run = BrokerRun(deployment, seed)
    try:
        return await broker_run.run(count)
    finally:
        await deployment.drop(broker_run.queues.own)


def main(
    count: Annotated[int, typer.Option(min=1, help="Number of messages.")] = 50_000,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 1,
) -> None:
    """Send hostile messages through RabbitMQ to a worker; exit with code 1 on a failure."""
    print(f"seed {seed}", flush=True)
    with start_servers() as servers:
        report = asyncio.run(
            run_through_broker(servers.rabbitmq.url, servers.mongodb.url, count, seed)
        )
        readers = asyncio.run(run_readers(servers.rabbitmq.url, servers.mongodb.url, count, seed))
    early, late = (size / 2**20 for size in report.memory)
    print(f"{count:,} messages in {report.seconds:.0f} s: {dict(report.outcomes)}")
    print(f"the worker's resident memory: {early:.1f} MiB after a tenth, {late:.1f} at the end")
    read = ", ".join(f"{number:,} {name}" for name, number in readers.items())
    print(f"{read} by a subscriber, outplan watch and outplan rejected")
    for failure in report.failures[:20]:
        print(f"FAILURE: {failure}")
    print("FAILED" if report.failures else "passed")
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    typer.run(main)
