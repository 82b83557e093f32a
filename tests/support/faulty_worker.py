"""Run a worker with a fault: ``python -m tests.support.faulty_worker run``.

Environment variables choose the fault:

CRASH_AT            kill the process at this point of a batch, one of CRASH_POINTS
CRASH_PROBABILITY   do so with this probability; without it, in a batch of more than one command
STOP_AT             suspend the process, once, at such a point of a batch of more than one command
CRASH_AFTER         kill the process this many seconds after its first command
CLOCK_SKEW          seconds that the clock is ahead

The name of a command makes it a poison message: "crash" kills the process, "hang" blocks it, and
"bug" raises an error.
"""

import asyncio
import os
import random
import re
import signal
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from outplan import bootstrap
from outplan.cli.app import main
from outplan.contract.amqp import Delivery, Publication
from outplan.contract.messages import Command
from outplan.domain import batch as batch_module
from outplan.domain.decider import Decision, decide
from outplan.domain.records import Snapshot
from outplan.mongodb.store import MongoStore, MongoTransaction
from outplan.rabbitmq.session import Session

CRASH_POINTS: Final = (
    "received", "loaded", "committed", "half published", "published", "acknowledged",
)  # fmt: skip


def install_faults() -> None:
    """Install the faults that the environment names. See the module's docstring."""
    if skew := os.environ.get("CLOCK_SKEW"):
        _skew_clock(float(skew))
    if point := os.environ.get("CRASH_AT"):
        _crash_at(point, os.environ.get("CRASH_PROBABILITY"))
    if point := os.environ.get("STOP_AT"):
        _crash_at(point, None, signal.SIGSTOP)
    if seconds := os.environ.get("CRASH_AFTER"):
        _crash_after(float(seconds))


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _skew_clock(seconds: float) -> None:
    def now() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=seconds)

    setattr(bootstrap, "utc_now", now)  # noqa: B010  bootstrap imports it by name


def _crash_at(
    crash_point: str, probability: str | None, number: signal.Signals = signal.SIGKILL
) -> None:
    receive, publish, ack = Session.receive, Session.publish, Session.ack
    load, transact = MongoTransaction.load, MongoStore.transact
    batch_size = 0

    def reach(point: str) -> None:
        nonlocal crash_point
        if point != crash_point:
            return
        if batch_size > 1 if probability is None else random.random() < float(probability):
            crash_point = ""
            os.kill(os.getpid(), number)

    async def receive_or_crash(self: Session, most: int) -> list[Delivery]:
        nonlocal batch_size
        deliveries = await receive(self, most)
        batch_size = len(deliveries)
        reach("received")
        return deliveries

    async def load_or_crash(self: MongoTransaction, *arguments: Any) -> Snapshot:
        snapshot = await load(self, *arguments)
        reach("loaded")
        return snapshot

    async def transact_or_crash(self: MongoStore, work: Any) -> Any:
        result = await transact(self, work)
        reach("committed")
        return result

    async def publish_or_crash(self: Session, publications: Sequence[Publication]) -> None:
        if crash_point == "half published":
            half = len(publications) // 2
            await publish(self, publications[:half])
            reach("half published")
            publications = publications[half:]
        await publish(self, publications)
        reach("published")

    async def ack_or_crash(self: Session, delivery: Delivery) -> None:
        await ack(self, delivery)
        reach("acknowledged")

    Session.receive = receive_or_crash  # type: ignore[method-assign]
    Session.publish = publish_or_crash  # type: ignore[method-assign]
    Session.ack = ack_or_crash  # type: ignore[method-assign]
    MongoTransaction.load = load_or_crash  # type: ignore[method-assign, assignment]
    MongoStore.transact = transact_or_crash  # type: ignore[method-assign]


def _crash_after(seconds: float) -> None:
    receive = Session.receive

    async def receive_and_set_timer(self: Session, most: int) -> list[Delivery]:
        deliveries = await receive(self, most)
        Session.receive = receive  # type: ignore[method-assign]
        asyncio.get_running_loop().call_later(seconds, _crash)
        return deliveries

    Session.receive = receive_and_set_timer  # type: ignore[method-assign]


def _install_poison() -> None:
    def decide_unless_poison(state: Any, command: Command, command_id: str, now: str) -> Decision:
        match getattr(command, "name", None):
            case "crash":
                _crash()
            case "hang":
                # Matching holds the interpreter's lock, so no other thread runs.
                re.match(r"(a+)+$", "a" * 100 + "b")
            case "bug":
                raise ZeroDivisionError("a bug")
        return decide(state, command, command_id, now)

    setattr(batch_module, "decide", decide_unless_poison)  # noqa: B010  imported by name


if __name__ == "__main__":
    install_faults()
    _install_poison()
    main()
