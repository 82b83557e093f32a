"""Run a worker with a defect: ``python -m tests.faults.chaos.worker run``.

Environment variables choose the defect:

CLOCK_SKEW      seconds that its clock is ahead
CRASH           ``<point>:<probability>``: kill itself at that point of a batch
PLANTED_FAULT   name of a fault in its code, see ``plants``
"""

import os
import random
import signal
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from outplan import bootstrap
from outplan.cli.app import main
from outplan.contract.amqp import Delivery, Publication
from outplan.domain.records import Snapshot
from outplan.mongodb.store import MongoStore, MongoTransaction
from outplan.rabbitmq.session import Session
from tests.faults.chaos.plants import plant

CRASH_POINTS: Final = (
    "received", "loaded", "committed", "half published", "published", "acknowledged",
)  # fmt: skip

_receive, _publish, _ack = Session.receive, Session.publish, Session.ack
_load, _transact = MongoTransaction.load, MongoStore.transact
_crash_point, _, _probability = os.environ.get("CRASH", ":0").partition(":")


def _crash_at(point: str) -> None:
    if point == _crash_point and random.random() < float(_probability):
        os.kill(os.getpid(), signal.SIGKILL)


async def receive(self: Session, most: int) -> list[Delivery]:
    batch = await _receive(self, most)
    _crash_at("received")
    return batch


async def load(self: MongoTransaction, *what: Any) -> Snapshot:
    snapshot = await _load(self, *what)
    _crash_at("loaded")
    return snapshot


async def transact(self: MongoStore, work: Any) -> Any:
    result = await _transact(self, work)
    _crash_at("committed")
    return result


async def publish(self: Session, publications: Sequence[Publication]) -> None:
    if _crash_point == "half published":
        half = len(publications) // 2
        await _publish(self, publications[:half])
        _crash_at("half published")
        publications = publications[half:]
    await _publish(self, publications)
    _crash_at("published")


async def ack(self: Session, delivery: Delivery) -> None:
    await _ack(self, delivery)
    _crash_at("acknowledged")


def _skew_clock(seconds: float) -> None:
    def now() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=seconds)

    setattr(bootstrap, "utc_now", now)  # noqa: B010  It imported the name.


def _install_crash_points() -> None:
    Session.receive = receive  # type: ignore[method-assign]
    Session.publish = publish  # type: ignore[method-assign]
    Session.ack = ack  # type: ignore[method-assign]
    MongoTransaction.load = load  # type: ignore[method-assign, assignment]
    MongoStore.transact = transact  # type: ignore[method-assign]


if __name__ == "__main__":
    if skew := os.environ.get("CLOCK_SKEW"):
        _skew_clock(float(skew))
    if _crash_point:
        _install_crash_points()
    plant(os.environ.get("PLANTED_FAULT"))
    main()
