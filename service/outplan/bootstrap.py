"""Compose a worker from its settings."""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib.metadata import version
from secrets import token_hex

import structlog

from outplan.contract.times import utc_now
from outplan.contract.topology import build_topology
from outplan.domain.layout import Share
from outplan.mongodb.store import MongoStore
from outplan.rabbitmq.management import default_management_url, open_management
from outplan.rabbitmq.session import Session, SessionPlan, open_session
from outplan.settings import Settings, find_unknown_variables
from outplan.urls import describe_amqp_url, describe_mongo_url, get_virtual_host
from outplan.worker.activity import Activity
from outplan.worker.health import Readiness, serve_health
from outplan.worker.membership import Membership
from outplan.worker.telemetry import Health, Metrics, configure_logging
from outplan.worker.watchdog import watchdog
from outplan.worker.worker import Dependencies, Worker


def compose(
    settings: Settings, store: MongoStore, health: Health, metrics: Metrics
) -> Dependencies:
    """Put a worker's parts together. Nothing is connected yet."""
    # Two machines may have the same name, and a container's process often has the same number.
    name = f"{socket.gethostname()}:{os.getpid()}:{token_hex(2)}"
    registry = store.open_registry(settings.prefix)
    activity = Activity(health, metrics)

    def open_broker_session(
        share: Share, require_layout: Callable[[], Awaitable[None]], is_first: bool, is_lost: bool
    ) -> AbstractAsyncContextManager[Session]:
        plan = SessionPlan(
            topology=share.layout.build_topology(settings.prefix),
            queues=share.queues,
            consumed=tuple(queue.name for queue in share.consumed),
            own=share.own,
            # A broker that comes back may have lost bindings; otherwise they are as they were.
            asserts_slots=(
                share.layout.is_steady and share.layout.partitions > 1 and (is_first or is_lost)
            ),
            is_first=is_first,
            require_layout=require_layout,
        )
        return open_session(plan, settings.amqp_url, lambda error: health.fail("publishing", error))

    return Dependencies(
        name=name,
        prefix=settings.prefix,
        place={
            "worker": name,
            "broker": describe_amqp_url(settings.amqp_url),
            "mongodb": describe_mongo_url(settings.mongo_url),
            "database": settings.mongo_database,
            "prefix": settings.prefix,
            "http_port": settings.http_port,
        },
        store=store,
        registry=registry,
        membership=Membership(
            registry=registry,
            prefix=settings.prefix,
            worker=name,
            partitions=settings.partitions,
            report=activity.report,
        ),
        open_session=open_broker_session,
        clock=utc_now,
        health=health,
        metrics=metrics,
        activity=activity,
    )


@asynccontextmanager
async def open_worker(settings: Settings, metrics: Metrics) -> AsyncIterator[Worker]:
    """Open a worker with its store and its HTTP endpoints; close all of them with the block."""
    health = Health(metrics)
    store = MongoStore(settings.mongo_url, settings.mongo_database, settings.mongo_driver)
    try:
        parts = compose(settings, store, health, metrics)
        worker = Worker(
            parts,
            batch_size=settings.batch_size,
            drain_seconds=settings.drain_seconds,
        )
        readiness = Readiness(
            health=health,
            metrics=metrics,
            is_blocked=worker.is_blocked,
            ping=store.ping,
            activity=parts.activity,
            list_refusing=partial(_list_refusing, settings),
        )
        async with serve_health(settings.http_port, readiness, metrics):
            yield worker
    finally:
        await store.close()


async def _list_refusing(settings: Settings) -> list[str]:
    """List the subscribers' queues that refuse events. Raises ManagementUnavailable."""
    url = settings.management_url or default_management_url(settings.amqp_url)
    async with open_management(url, get_virtual_host(settings.amqp_url)) as management:
        events = build_topology(settings.prefix, 1).events.name
        queues = await management.list_bound_queues(events)
    return [f"{queue.name} ({queue.refusal})" for queue in queues if queue.refusal]


async def run(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT; exit at once on a second signal. Raises Fatal."""
    metrics = Metrics()
    configure_logging(settings.log_format, settings.log_level, metrics.log_lines_dropped.inc)
    log = structlog.get_logger()
    log.info("worker_started", version=version("outplan-service"))
    # Batches make many short-lived objects. Collecting as often as by default, and over all that
    # was imported, took a sixth of the worker's time.
    gc.freeze()
    gc.set_threshold(20_000)
    for name in find_unknown_variables():
        log.warning("variable_ignored", name=name, detail="no setting has this name")
    async with watchdog(settings.hang_seconds), open_worker(settings, metrics) as worker:
        _stop_on_signals(worker)
        await worker.run()
    log.info("worker_stopped")


def _stop_on_signals(worker: Worker) -> None:
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        loop.remove_signal_handler(number)
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, os._exit, 128 + each)
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
