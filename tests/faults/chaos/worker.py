"""``python -m tests.faults.chaos.worker run``: a worker with something wrong, by its environment.

CLOCK_OFF   seconds by which its clock is off
FRAGILE     ``<point>:<probability>``: it kills itself at that point of a batch
PLANTED     the name of a fault in its code, see ``plants``
"""

import os
import random
import signal
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from outplan import bootstrap
from outplan.cli import app
from outplan.contract.amqp import Delivery, Publication
from outplan.domain.decider import text_time
from outplan.domain.records import Snapshot
from outplan.mongodb.store import Store, Transaction
from outplan.rabbitmq.session import Session
from tests.faults.chaos.plants import plant

POINTS: Final = ("received", "loaded", "committed", "half published", "published", "acknowledged")

_receive, _publish, _ack = Session.receive, Session.publish, Session.ack
_load, _transact = Transaction.load, Store.transact
_point, _, _probability = os.environ.get("FRAGILE", ":0").partition(":")


def _reached(point: str) -> None:
    if point == _point and random.random() < float(_probability):
        os.kill(os.getpid(), signal.SIGKILL)


async def receive(self: Session, most: int) -> list[Delivery]:
    batch = await _receive(self, most)
    _reached("received")
    return batch


async def load(self: Transaction, *what: Any) -> Snapshot:
    snapshot = await _load(self, *what)
    _reached("loaded")
    return snapshot


async def transact(self: Store, work: Any) -> Any:
    result = await _transact(self, work)
    _reached("committed")
    return result


async def publish(self: Session, publications: Sequence[Publication]) -> None:
    if _point == "half published":
        half = len(publications) // 2
        await _publish(self, publications[:half])
        _reached("half published")
        publications = publications[half:]
    await _publish(self, publications)
    _reached("published")


async def ack(self: Session, delivery: Delivery) -> None:
    await _ack(self, delivery)
    _reached("acknowledged")


def _set_clock(seconds: float) -> None:
    def now() -> str:
        return text_time(datetime.now(UTC) + timedelta(seconds=seconds))

    bootstrap.utc_now = now


def _make_fragile() -> None:
    Session.receive = receive  # type: ignore[method-assign]
    Session.publish = publish  # type: ignore[method-assign]
    Session.ack = ack  # type: ignore[method-assign]
    Transaction.load = load  # type: ignore[method-assign, assignment]
    Store.transact = transact  # type: ignore[method-assign]


if __name__ == "__main__":
    if off := os.environ.get("CLOCK_OFF"):
        _set_clock(float(off))
    if _point:
        _make_fragile()
    plant(os.environ.get("PLANTED"))
    app(prog_name="outplan")
