"""Show what a service does now on one screen: ``outplan status``."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from outplan.cli.errors import ExitCode, fail, handle_errors, run_async
from outplan.cli.output import escape, escape_json, make_console, print_table
from outplan.domain.layout import EXPIRY_SECONDS, describe_partitions
from outplan.errors import Fatal, OutplanError
from outplan.mongodb.inspection import SeenWorker
from outplan.operations.liveness_check import describe_seconds, describe_share, describe_work
from outplan.operations.overview import Observer, Overview, QueueView, open_observer
from outplan.settings import Settings, load_settings
from outplan.urls import describe_amqp_url, describe_mongo_url

# A worker announces itself once a second.
_LATE_SECONDS: Final = 3


@dataclass(slots=True)
class _Rejected:
    """The rejected commands by code, counted again when their number changes."""

    total: int = 0
    by_code: dict[str, int] | None = field(default_factory=dict)

    async def refresh(self, observer: Observer, overview: Overview) -> None:
        name = overview.topology.rejected.name
        total = sum(queue.ready for queue in overview.queues if queue.name == name)
        if total == self.total or "rabbitmq" in overview.errors:
            return
        try:
            self.by_code = await observer.count_rejected(overview)
        except OutplanError:
            self.by_code = None
        self.total = total


def show_status(*, watch: bool, interval: float, as_json: bool) -> None:
    """Print an overview, again and again with ``watch``; raise typer.Exit if a part is missing."""
    try:
        settings = load_settings()
    except Fatal as error:
        fail(error, error.exit_code)
    with handle_errors():
        is_complete = run_async(_show(settings, watch, interval, as_json))
    if not is_complete:
        raise typer.Exit(ExitCode.FAILED)


async def _show(settings: Settings, watch: bool, interval: float, as_json: bool) -> bool:
    rejected, console = _Rejected(), make_console()
    async with open_observer(settings) as observer:
        while True:
            overview = await observer.read()
            await rejected.refresh(observer, overview)
            if as_json:
                typer.echo(escape_json(json.dumps(_to_json(settings, overview, rejected))))
            else:
                if watch and console.is_terminal:
                    console.clear()
                _print(console, settings, overview, rejected)
            if not watch:
                return not overview.errors.keys() & {"mongodb", "rabbitmq"}
            await asyncio.sleep(interval)


def _print(console: Console, settings: Settings, overview: Overview, rejected: _Rejected) -> None:
    _print_line(console, _describe_place(settings, overview))
    for server, error in overview.errors.items():
        _print_line(console, f"{server}: {error}", "yellow" if server == "management" else "red")
    _print_table(console, "WORKERS", (), (_describe_worker(overview, w) for w in overview.workers))
    queues = [q for q in overview.queues if q.name != overview.topology.rejected.name]
    heads = ("ready", "unacked", "consumers", "last commit", "lag", "by")
    _print_table(console, "QUEUES", heads, (_describe_queue(overview, q) for q in queues))
    _print_line(console, "")
    _print_line(console, f"REJECTED  {_describe_rejected(overview, rejected)}")
    if overview.subscribers is not None:
        rows = (
            (q.name, f"{q.ready:,}", f"{q.unacked:,}", f"{q.consumers:,}", q.refusal)
            for q in overview.subscribers
        )
        _print_table(console, "SUBSCRIBERS", ("ready", "unacked", "consumers"), rows)


def _describe_place(settings: Settings, overview: Overview) -> str:
    layout = overview.layout
    state = "no worker has started here yet"
    if layout is not None:
        state = f"{describe_partitions(layout.partitions)}, phase {layout.phase}"
    return (
        f"{settings.prefix} on {describe_amqp_url(settings.amqp_url)}, database "
        f"{settings.mongo_database} on {describe_mongo_url(settings.mongo_url)}: {state}"
    )


def _describe_worker(overview: Overview, worker: SeenWorker) -> tuple[str | Text, ...]:
    share = overview.shares.get(worker.name)
    more = (
        (f"{worker.report.unacked:,} unacked",)
        if share is None
        else (describe_work(worker), describe_share(share))
    )
    return (worker.name, _judge(worker), *more)


def _judge(worker: SeenWorker) -> Text:
    """Return a worker's state in words and a colour."""
    state, style = _find_state(worker)
    return Text(escape(state), style)


def _find_state(worker: SeenWorker) -> tuple[str, str]:
    ago = f"silent for {describe_seconds(worker.seconds)}"
    if worker.seconds > EXPIRY_SECONDS:
        return ago, "red"
    if worker.report.failures:
        return "; ".join(f"{c}: {e}" for c, e in worker.report.failures.items()), "red"
    return (ago, "yellow") if worker.seconds > _LATE_SECONDS else ("ready", "green")


def _describe_queue(overview: Overview, queue: QueueView) -> tuple[str, ...]:
    holder, unacked = queue.holder, overview.find_unacked(queue)
    committed = lag = worker = "-"
    if holder is not None:
        worker = holder.worker
        if holder.committed_seconds is not None:
            committed = f"{describe_seconds(max(0, holder.committed_seconds))} ago"
        if holder.lag is not None:
            lag = describe_seconds(holder.lag)
    return (
        queue.name,
        f"{queue.ready:,}",
        "-" if unacked is None else f"{unacked:,}",
        f"{queue.consumers:,}",
        committed,
        lag,
        worker,
    )


def _describe_rejected(overview: Overview, rejected: _Rejected) -> str:
    if "rabbitmq" in overview.errors:
        return "unknown"
    if not rejected.total:
        return "none"
    counts = ", ".join(f"{n:,} {escape(code)}" for code, n in (rejected.by_code or {}).items())
    return f"{rejected.total:,}{f': {counts}' if counts else ''}; see outplan rejected list"


def _print_table(
    console: Console, title: str, heads: tuple[str, ...], rows: Iterable[tuple[str | Text, ...]]
) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(title)
    for head in heads:
        is_number = head in ("ready", "unacked", "consumers")
        table.add_column(head, justify="right" if is_number else "left")
    listed = [tuple(escape(c) if isinstance(c, str) else c for c in row) for row in rows]
    for row in listed or [("none",)]:
        while len(table.columns) < len(row):
            table.add_column()
        table.add_row(*row)
    _print_line(console, "")
    print_table(table, console=console)


def _print_line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(escape(text), style), soft_wrap=True)


def _to_json(settings: Settings, overview: Overview, rejected: _Rejected) -> dict[str, Any]:
    layout = overview.layout
    return {
        "prefix": settings.prefix,
        "broker": describe_amqp_url(settings.amqp_url),
        "mongodb": describe_mongo_url(settings.mongo_url),
        "database": settings.mongo_database,
        "partitions": None if layout is None else layout.partitions,
        "phase": None if layout is None else layout.phase,
        "workers": [_worker_to_json(overview, worker) for worker in overview.workers],
        "queues": [
            _queue_to_json(overview, queue)
            for queue in overview.queues
            if queue.name != overview.topology.rejected.name
        ],
        "rejected": {"total": rejected.total, "by_code": rejected.by_code},
        "subscribers": None
        if overview.subscribers is None
        else [
            {
                "name": queue.name,
                "ready": queue.ready,
                "unacked": queue.unacked,
                "consumers": queue.consumers,
                "refusal": queue.refusal,
            }
            for queue in overview.subscribers
        ],
        "errors": overview.errors,
    }


def _worker_to_json(overview: Overview, worker: SeenWorker) -> dict[str, Any]:
    share = overview.shares.get(worker.name)
    return {
        "name": worker.name,
        "is_alive": share is not None,
        "announced_seconds_ago": round(worker.seconds, 1),
        "role": "active" if worker.report.active else "standby",
        "active_queues": list(worker.report.active),
        "own_queues": list(share.own) if share is not None else [],
        "unacked": worker.report.unacked,
        "troubles": dict(worker.report.failures),
    }


def _queue_to_json(overview: Overview, queue: QueueView) -> dict[str, Any]:
    holder = queue.holder
    return {
        "name": queue.name,
        "ready": queue.ready,
        "unacked": overview.find_unacked(queue),
        "consumers": queue.consumers,
        "worker": None if holder is None else holder.worker,
        "last_commit_seconds_ago": None if holder is None else holder.committed_seconds,
        "lag_seconds": None if holder is None else holder.lag,
    }
