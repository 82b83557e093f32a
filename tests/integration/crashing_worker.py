"""``python -m tests.integration.crashing_worker run``: a worker that kills itself.

At the point CRASH_AT, from the first batch of more than one command on; and whenever it is to
decide on a command whose name is "killer". A command named "bug" makes it raise instead, one
named "endless" has it look for an end that is not there. Given CRASH_AFTER it kills itself that
many seconds after its first command.
"""

import asyncio
import os
import re
import signal
from collections.abc import Sequence
from typing import Any

from outplan.cli.app import main
from outplan.contract.amqp import Delivery, Publication
from outplan.contract.messages import Command
from outplan.domain import batch
from outplan.domain.decider import Decision
from outplan.domain.decider import decide as real_decide
from outplan.domain.records import Snapshot
from outplan.mongodb.store import MongoStore, MongoTransaction
from outplan.rabbitmq.session import Session

CRASH_AT = os.environ.get("CRASH_AT")
CRASH_AFTER = float(os.environ.get("CRASH_AFTER", "0"))

_receive, _publish = Session.receive, Session.publish
_load, _transact = MongoTransaction.load, MongoStore.transact
_big = False
_doomed: list[asyncio.TimerHandle] = []


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _crash(point: str) -> None:
    if _big and point == CRASH_AT:
        _die()


async def receive(self: Session, most: int) -> list[Delivery]:
    global _big  # noqa: PLW0603  one process, one crash
    batch = await _receive(self, most)
    if CRASH_AFTER and not _doomed:
        _doomed.append(asyncio.get_running_loop().call_later(CRASH_AFTER, _die))
    _big = len(batch) > 1
    _crash("received")
    return batch


async def publish(self: Session, publications: Sequence[Publication]) -> None:
    if CRASH_AT == "half published":
        await _publish(self, publications[: len(publications) // 2])
        _crash("half published")
    await _publish(self, publications)
    _crash("published")


async def load(self: MongoTransaction, *what: Any) -> Snapshot:
    snapshot = await _load(self, *what)
    _crash("loaded")
    return snapshot


async def transact(self: MongoStore, work: Any) -> Any:
    result = await _transact(self, work)
    _crash("committed")
    return result


def decide(state: Any, command: Command, command_id: str, now: str) -> Decision:
    if getattr(command, "name", None) == "killer":
        _die()
    if getattr(command, "name", None) == "endless":
        # The interpreter's lock is kept all the while: no other thread runs.
        re.match(r"(a+)+$", "a" * 100 + "b")
    if getattr(command, "name", None) == "bug":
        raise ZeroDivisionError("a bug")
    return real_decide(state, command, command_id, now)


if __name__ == "__main__":
    Session.receive = receive  # type: ignore[method-assign]
    Session.publish = publish  # type: ignore[method-assign]
    MongoTransaction.load = load  # type: ignore[method-assign, assignment]
    MongoStore.transact = transact  # type: ignore[method-assign]
    setattr(batch, "decide", decide)  # noqa: B010  it has it by import
    main()
