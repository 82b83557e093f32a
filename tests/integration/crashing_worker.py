"""``python -m tests.integration.crashing_worker run``: a worker that kills itself at CRASH_AT.

Only from the first batch of more than one command on: a worker's first is always alone.
"""

import os
import signal
from collections.abc import Sequence
from typing import Any

from service.broker import Session
from service.cli import app
from service.codec import Delivery, Publication
from service.store import Snapshot, Store, Transaction

POINTS = ("received", "loaded", "committed", "half published", "published")

_big = False


def _crash(point: str) -> None:
    if _big and os.environ["CRASH_AT"] == point:
        os.kill(os.getpid(), signal.SIGKILL)


class CrashingSession:
    """Session's methods with a crash in them."""

    receive = Session.receive
    publish = Session.publish


async def _receive(self: Session, most: int) -> list[Delivery]:
    global _big  # noqa: PLW0603  one process, one crash
    batch = await CrashingSession.receive(self, most)
    _big = len(batch) > 1
    _crash("received")
    return batch


async def _publish(self: Session, publications: Sequence[Publication]) -> None:
    if _big and os.environ["CRASH_AT"] == "half published":
        await CrashingSession.publish(self, publications[: len(publications) // 2])
        _crash("half published")
    await CrashingSession.publish(self, publications)
    _crash("published")


_load, _transact = Transaction.load, Store.transact


async def _crashing_load(self: Transaction, *ids: Any) -> Snapshot:
    snapshot = await _load(self, *ids)
    _crash("loaded")
    return snapshot


async def _crashing_transact(self: Store, work: Any) -> Any:
    result = await _transact(self, work)
    _crash("committed")
    return result


Session.receive = _receive  # type: ignore[method-assign]
Session.publish = _publish  # type: ignore[method-assign]
Transaction.load = _crashing_load  # type: ignore[method-assign]
Store.transact = _crashing_transact  # type: ignore[assignment,method-assign]

if __name__ == "__main__":
    app(prog_name="outplan")
