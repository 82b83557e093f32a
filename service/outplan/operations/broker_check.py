"""Check that RabbitMQ is as a worker needs it, without changing anything."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiormq.exceptions import AuthenticationError, ProbableAuthenticationError
from yarl import URL

from outplan.contract.topology import Exchange, Queue, Topology, build_topology
from outplan.errors import BrokerRefused, BrokerUnavailable, OutplanError
from outplan.operations.findings import Finding, not_checked, ok, problem
from outplan.operations.probes import SECONDS, ProbeResult, Probes
from outplan.rabbitmq.connection import open_connection
from outplan.rabbitmq.reader import FrameHandler
from outplan.settings import Settings

_MIN_VERSION: Final = (3, 10)
_POINTS: Final = (
    "rabbitmq version", "rabbitmq topology", "rabbitmq permissions", "rabbitmq queues",
    "rabbitmq alarms",
)  # fmt: skip
_DEFAULT_EXCHANGE: Final = "the default exchange"


class _CloseReason(FrameHandler):
    """Keep the reason that the broker gives when it closes the connection."""

    reason = ""

    def on_close(self, code: int, reason: str) -> None:  # noqa: ARG002
        self.reason = reason


@asynccontextmanager
async def _open_probes(url: str, closed: _CloseReason) -> AsyncIterator[Probes]:
    async with asyncio.timeout(SECONDS) as limit:
        async with open_connection(url, "check", closed) as connection:
            limit.reschedule(None)
            yield Probes(connection)


async def check_broker(settings: Settings) -> list[Finding]:
    """Check every point in turn; a problem does not hide the others."""
    closed = _CloseReason()
    try:
        async with _open_probes(settings.amqp_url, closed) as probes:
            return [*_report_connected(settings.amqp_url), *await _check_points(settings, probes)]
    except (BrokerRefused, BrokerUnavailable, TimeoutError) as error:
        return [
            *_report_not_connected(settings.amqp_url, error, closed),
            *not_checked(_POINTS, "no connection to RabbitMQ"),
        ]


async def _check_points(settings: Settings, probes: Probes) -> list[Finding]:
    layout = build_topology(settings.prefix, settings.partitions or 1)
    found = [_check_version(probes.version)]
    inspected = {declared.name: await probes.inspect(declared) for declared in _objects(layout)}
    for declared in _objects(layout):
        found.append(await _check_drift(probes, declared, inspected[declared.name]))
    found += await _check_permissions(settings, probes, layout)
    found += _report_depths(layout, inspected)
    return [*found, *await _check_publishing(settings)]


def _objects(layout: Topology) -> list[Exchange | Queue]:
    return [*layout.exchanges, *layout.queues]


def _address(url: str) -> str:
    target = URL(url)
    port = target.port or (5671 if target.scheme == "amqps" else 5672)
    return f"{target.host}:{port}"


def _vhost(url: str) -> str:
    return URL(url).path.removeprefix("/") or "/"


def _report_connected(url: str) -> list[Finding]:
    return [
        ok("rabbitmq", f"answers at {_address(url)}"),
        ok("rabbitmq credentials", f"user {URL(url).user or 'guest'}"),
        ok("rabbitmq virtual host", _vhost(url)),
    ]


def _report_not_connected(url: str, error: Exception, closed: _CloseReason) -> list[Finding]:
    there, credentials, vhost = _report_connected(url)
    if isinstance(error, TimeoutError):
        error = BrokerUnavailable(f"no answer within {SECONDS} s")
    if isinstance(error.__cause__, AuthenticationError | ProbableAuthenticationError):
        remedy = (
            "check user and password in OUTPLAN_AMQP_URL; guest may connect from localhost only"
        )
        refused = problem(credentials.point, "RabbitMQ refuses user or password", remedy)
        return [there, refused, *not_checked([vhost.point], "RabbitMQ refuses the credentials")]
    if closed.reason:
        remedy = "check the virtual host in OUTPLAN_AMQP_URL, and the user's permissions on it"
        return [there, credentials, problem(vhost.point, closed.reason, remedy)]
    remedy = "check OUTPLAN_AMQP_URL, and that RabbitMQ runs there"
    return [
        problem(there.point, f"{_address(url)}: {error}", remedy),
        *not_checked([credentials.point, vhost.point], "no connection to RabbitMQ"),
    ]


def _check_version(version: str) -> Finding:
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < _MIN_VERSION:
        return problem(
            "rabbitmq version", version or "unknown", "upgrade to RabbitMQ 3.10 or later"
        )
    return ok("rabbitmq version", version)


async def _check_drift(
    probes: Probes, declared: Exchange | Queue, inspected: ProbeResult
) -> Finding:
    point = f"{'queue' if isinstance(declared, Queue) else 'exchange'} {declared.name}"
    if inspected.outcome == "missing":
        return ok(point, "does not exist yet; a worker declares it")
    compared = await probes.compare(declared) if inspected.outcome == "done" else inspected
    if compared.outcome == "done":
        return ok(point, "declared as a worker does")
    if compared.outcome == "refused":
        return not_checked([point], "it exists; comparing it needs the configure permission")[0]
    remedy = "a worker refuses to start: delete it once it is empty, or set another OUTPLAN_PREFIX"
    if compared.outcome == "failed":
        remedy = "see whether its node is up: rabbitmq-queues check_if_node_is_quorum_critical"
    return problem(point, compared.text, remedy)


async def _check_permissions(settings: Settings, probes: Probes, layout: Topology) -> list[Finding]:
    configure = {
        declared.name: await probes.probe_configure(declared) for declared in _objects(layout)
    }
    binds = [
        await probes.probe_bind(b.source, b.destination, to_exchange=b.to_exchange)
        for b in layout.bindings
    ]
    read = {queue.name: await probes.probe_read(queue.name) for queue in layout.command_queues}
    bound = {
        f"{b.source} to {b.destination}": a for b, a in zip(layout.bindings, binds, strict=True)
    }
    return [
        _report_permission("permission to configure", configure, settings),
        _report_permission("permission to bind", bound, settings),
        _report_permission("permission to read", read, settings),
    ]


def _report_permission(point: str, answers: dict[str, ProbeResult], settings: Settings) -> Finding:
    if refused := [name for name, answer in answers.items() if answer.outcome == "refused"]:
        return problem(point, f"refused for {', '.join(refused)}", _grant_command(settings))
    if failed := [name for name, answer in answers.items() if answer.outcome == "failed"]:
        return not_checked([point], f"{failed[0]}: {answers[failed[0]].text}")[0]
    return ok(point, _summary(list(answers)))


def _summary(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:4])}, … ({len(names)})"


def _grant_command(settings: Settings) -> str:
    names = f"^{re.escape(settings.prefix)}\\."
    user = URL(settings.amqp_url).user or "guest"
    return (
        f"rabbitmqctl set_permissions -p {_vhost(settings.amqp_url)} {user} "
        f"'{names}' '{names}|^amq\\.default$' '{names}'"
    )


def _report_depths(layout: Topology, inspected: dict[str, ProbeResult]) -> list[Finding]:
    there = [q for q in layout.queues if inspected[q.name].outcome == "done"]
    return [
        _report_depth(queue, inspected[queue.name], queue is layout.rejected) for queue in there
    ]


def _report_depth(queue: Queue, answer: ProbeResult, is_rejected: bool) -> Finding:
    waiting, consumers = answer.value.message_count, answer.value.consumer_count
    point, plural = f"depth of {queue.name}", "" if consumers == 1 else "s"
    text = f"{waiting:,} waiting, {consumers} consumer{plural}"
    if is_rejected:
        return ok(point, f"{text}; see outplan rejected list" if waiting else text)
    if waiting and not consumers:
        return problem(point, text, "no worker consumes: start one with outplan run")
    return ok(point, text if consumers else f"{text}: no worker consumes")


async def _check_publishing(settings: Settings) -> list[Finding]:
    """Check what publishing needs, on a connection of its own, since an alarm blocks it."""
    layout = build_topology(settings.prefix, settings.partitions or 1)
    try:
        async with _open_probes(settings.amqp_url, _CloseReason()) as probes:
            answers = {_DEFAULT_EXCHANGE: await probes.probe_write("")}
            if await probes.is_blocked():
                return _report_blocked()
            answers[layout.events.name] = await probes.probe_write(layout.events.name)
    except (OutplanError, TimeoutError) as error:
        return not_checked(["permission to write", "rabbitmq alarms"], str(error))
    return [
        _report_permission("permission to write", answers, settings),
        ok("rabbitmq alarms", "none: publishers are not blocked"),
    ]


def _report_blocked() -> list[Finding]:
    remedy = "see rabbitmq-diagnostics alarms: free memory or disk space"
    return [
        *not_checked(["permission to write"], "an alarm blocks publishers"),
        problem("rabbitmq alarms", "an alarm blocks publishers", remedy),
    ]
