"""The composition root: settings in, a wired worker out."""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial

import structlog

from outplan.contract.topology import PREFETCH, topology
from outplan.domain.decider import text_time
from outplan.mongodb.store import Store
from outplan.rabbitmq.session import open_session
from outplan.settings import Settings, unknown_variables
from outplan.worker.handler import Handler
from outplan.worker.health import Readiness, serve_health
from outplan.worker.telemetry import Health, Metrics
from outplan.worker.watchdog import watched
from outplan.worker.worker import Limits, Wiring, Worker


def utc_now() -> str:
    """The clock: UTC now in the contract's text form."""
    return text_time(datetime.now(UTC))


def wire(settings: Settings, store: Store, health: Health, metrics: Metrics) -> Wiring:
    """Put a worker's parts together; nothing is connected yet."""
    layout = topology(settings.prefix, settings.partitions)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    return Wiring(
        store=store,
        open_session=partial(
            open_session, settings.amqp_url, layout, partial(health.trouble, "publishing")
        ),
        make_handler=partial(
            Handler,
            store,
            worker,
            PREFETCH * settings.partitions,
            utc_now,
            partial(health.trouble, "store"),
        ),
        topology=layout,
        clock=utc_now,
        health=health,
        metrics=metrics,
    )


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncIterator[Worker]:
    """A worker with its store and its HTTP endpoints, all closed with the block."""
    metrics = Metrics()
    health = Health(metrics)
    store = Store(settings.mongo_url, settings.mongo_database, settings.mongo_driver)
    try:
        limits = Limits(settings.batch_size, settings.drain_seconds)
        worker = Worker(wire(settings, store, health, metrics), limits)
        readiness = Readiness(health, metrics, worker.blocked, store.ping)
        async with serve_health(settings.http_port, readiness, metrics):
            yield worker
    finally:
        await store.close()


async def run(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT; a second one leaves at once. Raises Fatal."""
    log = structlog.get_logger()
    # Batches make many objects that die young. Looking through all that was imported, and so
    # often, took a sixth of the worker's time.
    gc.freeze()
    gc.set_threshold(20_000)
    for name in unknown_variables():
        log.warning("unknown variable", name=name)
    async with watched(settings.hang_seconds), open_worker(settings) as worker:
        _on_signals(worker)
        await worker.run()
    log.info("stopped")


def _on_signals(worker: Worker) -> None:
    loop = asyncio.get_running_loop()

    def signalled(number: int) -> None:
        loop.remove_signal_handler(number)
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, os._exit, 128 + each)
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled, number)
