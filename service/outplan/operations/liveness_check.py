"""Check that a running service moves: its workers, its command queues, its subscribers' queues."""

import asyncio
from typing import Final

from outplan.domain.layout import EXPIRY_SECONDS, Share
from outplan.errors import WrongSetting
from outplan.mongodb.inspection import SeenWorker
from outplan.operations.findings import Finding, not_checked, ok, problem, warning
from outplan.operations.overview import (
    Observer,
    Overview,
    QueueView,
    open_observer,
)
from outplan.rabbitmq.management import ManagedQueue
from outplan.settings import Settings

_POLL_SECONDS: Final = 0.5
# A worker announces itself once a second.
_DOUBT_SECONDS: Final = 1.5
# The others have noticed by then, and have found out who is active.
_DECIDED_SECONDS: Final = EXPIRY_SECONDS + 4
# A batch takes less. A queue whose commands wait for longer may stand still.
_STILL_SECONDS: Final = 10
_RECHECK_SECONDS: Final = 3
_POINTS: Final = ("workers", "progress", "subscriber queues")


async def check_liveness(settings: Settings) -> list[Finding]:
    """Report each worker, the queues that stand still, and subscribers' queues that refuse events.

    Waits some seconds for a worker that is late with its announcement, and for a queue that seems
    to stand still.
    """
    try:
        async with open_observer(settings) as observer:
            overview = await _wait_for_late_workers(observer)
            if overview.layout is None and "mongodb" not in overview.errors:
                found = [ok("workers", "none has started here yet")]
                return [*found, *_report_subscribers(overview)]
            still = _list_still(overview)
            if still:
                await asyncio.sleep(_RECHECK_SECONDS)
                still = _keep_unmoved(still, await observer.read())
    except WrongSetting as error:
        return not_checked(_POINTS, str(error))
    return [
        *_report_workers(overview),
        *_report_consumers(overview),
        *_report_progress(overview, still),
        *_report_subscribers(overview),
    ]


async def _wait_for_late_workers(observer: Observer) -> Overview:
    """Return an overview in which no worker's life is in doubt: it lives, or has expired."""
    overview = await observer.read()
    for _ in range(int(_DECIDED_SECONDS / _POLL_SECONDS)):
        late = [w for w in overview.workers if _DOUBT_SECONDS < w.seconds <= _DECIDED_SECONDS]
        if not late or overview.errors.keys() & {"mongodb", "rabbitmq"}:
            break
        await asyncio.sleep(_POLL_SECONDS)
        overview = await observer.read()
    return overview


def _report_workers(overview: Overview) -> list[Finding]:
    if error := overview.errors.get("mongodb"):
        return not_checked(["workers"], error)
    found = [_report_worker(overview, worker) for worker in overview.workers]
    if not overview.live:
        found.append(warning("workers", "none is alive", "start one with outplan run"))
    return found


def _report_worker(overview: Overview, worker: SeenWorker) -> Finding:
    point, report = f"worker {worker.name}", worker.report
    if worker.seconds > EXPIRY_SECONDS:
        return _report_silent(overview, worker)
    text = f"{describe_share(overview.shares[worker.name])}; {describe_work(worker)}"
    if report.failures:
        why = "; ".join(f"{part}: {error}" for part, error in report.failures.items())
        return problem(point, f"not ready: {why}; {text}", _find_remedy(overview))
    return ok(point, text)


def describe_share(share: Share) -> str:
    """List a worker's partitions, all after the first one by their number."""
    if share.own:
        first, *others = share.own
        return ", ".join([f"owns {first}", *(f".{name.rpartition('.')[2]}" for name in others)])
    if any(queue.is_partition for queue in share.queues):
        return "owns no partition"
    return f"consumes {share.queues[0].name}"


def describe_work(worker: SeenWorker) -> str:
    """Tell a worker's role, and what it has in hand."""
    active = len(worker.report.active)
    role = f"active for {active} queue{'' if active == 1 else 's'}" if active else "on standby"
    return f"{role}, {worker.report.unacked:,} unacked"


def _find_remedy(overview: Overview) -> str:
    if any(queue.refusal for queue in overview.subscribers or ()):
        return "make room in the subscriber queue below"
    return "the worker goes on by itself when that is mended"


def _report_silent(overview: Overview, worker: SeenWorker) -> Finding:
    point = f"worker {worker.name}"
    text = f"it last announced itself {describe_seconds(worker.seconds)} ago"
    if "rabbitmq" in overview.errors:
        remedy = "see its log, and whether its process still runs"
        return warning(point, f"{text}; whether it still consumes cannot be told", remedy)
    if not overview.list_seized():
        return ok(point, f"is gone: {text}, and left no consumer")
    had = f", when it had {worker.report.unacked:,} unacked commands"
    return problem(
        point,
        f"{text}{had}, and a consumer is left: it is frozen, or cannot reach MongoDB. Nobody else "
        "gets the commands that it has",
        "see its log; or kill it, then RabbitMQ gives its commands to another worker",
    )


def _report_consumers(overview: Overview) -> list[Finding]:
    """Report consumers that are no worker's."""
    is_silent = any(worker.seconds > EXPIRY_SECONDS for worker in overview.workers)
    if is_silent or "mongodb" in overview.errors:
        return []
    return [
        warning(
            f"consumer of {queue.name}",
            "is none of the live workers: another program, a worker of an earlier version, or one "
            "that is just starting",
            "see rabbitmqctl list_consumers; commands that another program takes are lost",
        )
        for queue in overview.list_seized()
    ]


def _list_still(overview: Overview) -> list[QueueView]:
    """List the queues whose commands wait though nothing was committed for a while."""

    def is_still(queue: QueueView) -> bool:
        holder = queue.holder
        seconds = holder.committed_seconds if holder is not None else None
        waits = queue.ready or overview.find_unacked(queue)
        return bool(
            queue.is_consumed
            and queue.consumers
            and waits
            and (seconds is None or seconds > _STILL_SECONDS)
        )

    return [queue for queue in overview.queues if is_still(queue)]


def _keep_unmoved(queues: list[QueueView], later: Overview) -> list[QueueView]:
    """Keep the queues in which nothing has moved meanwhile."""
    by_name = {queue.name: queue for queue in _list_still(later)}
    return [
        by_name[queue.name]
        for queue in queues
        if queue.name in by_name
        and _count_batches(by_name[queue.name]) == _count_batches(queue)
        and by_name[queue.name].ready >= queue.ready
    ]


def _count_batches(queue: QueueView) -> int:
    return 0 if queue.holder is None else queue.holder.batches


def _report_progress(overview: Overview, still: list[QueueView]) -> list[Finding]:
    if unread := [overview.errors[s] for s in ("mongodb", "rabbitmq") if s in overview.errors]:
        return not_checked(["progress"], "; ".join(unread))
    return [_report_still(queue) for queue in still] or [
        ok("progress", "no command waits while its worker does nothing")
    ]


def _report_still(queue: QueueView) -> Finding:
    unacked = "" if queue.unacked is None else f" and {queue.unacked:,} unacked"
    holder = queue.holder
    if holder is None or holder.committed_seconds is None:
        last = "nothing was ever committed"
    else:
        ago = describe_seconds(holder.committed_seconds)
        last = f"the last commit is {ago} ago, by {holder.worker}"
    return problem(
        f"progress of {queue.name}",
        f"stands still: {queue.ready:,} ready{unacked}, and {last}",
        "see the worker's log and its /readyz",
    )


def _report_subscribers(overview: Overview) -> list[Finding]:
    point = "subscriber queues"
    if overview.subscribers is None:
        why = overview.errors.get("management", "RabbitMQ does not answer")
        advice = "run rabbitmq-plugins enable rabbitmq_management, or set OUTPLAN_MANAGEMENT_URL"
        return not_checked([point], f"the management API at {why}; {advice}")
    refusing = [queue for queue in overview.subscribers if queue.refusal]
    if refusing:
        return [_report_refusal(queue) for queue in refusing]
    return [ok(point, _summarize(overview.subscribers))]


def _report_refusal(queue: ManagedQueue) -> Finding:
    return problem(
        f"subscriber queue {queue.name}",
        f"refuses events: {queue.refusal}; every worker waits with it, and finishes no command",
        f"let its consumer ({queue.consumers} now) catch up, raise its limit, or empty it: "
        f"rabbitmqctl purge_queue {queue.name}",
    )


def _summarize(queues: list[ManagedQueue]) -> str:
    if not queues:
        return "none: nobody gets events"
    deepest = max(queues, key=_count_messages)
    return (
        f"{len(queues)} get{'s' if len(queues) == 1 else ''} events; the deepest is "
        f"{deepest.name}: {deepest.ready:,} ready, {deepest.unacked:,} unacked"
    )


def _count_messages(queue: ManagedQueue) -> int:
    return queue.ready + queue.unacked


def describe_seconds(seconds: float) -> str:
    """Return a span of time in the largest unit that fits: ``4 s``, ``12 min``, ``3 h``."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
