"""Check that RabbitMQ is as a worker needs it, without changing anything."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiormq.exceptions import AuthenticationError, ProbableAuthenticationError
from yarl import URL

from outplan.contract.slots import SLOTS
from outplan.contract.topology import Exchange, Queue, Topology
from outplan.domain.layout import Layout
from outplan.errors import BrokerRefused, BrokerUnavailable, OutplanError
from outplan.operations.findings import Finding, not_checked, ok, problem, warning
from outplan.operations.probes import SECONDS, ProbeResult, Probes, gather_by_name
from outplan.operations.queue_check import Expected, check_stale, report_depths
from outplan.rabbitmq.connection import open_connection
from outplan.rabbitmq.versions import find_known_defect, parse_version
from outplan.settings import Settings
from outplan.urls import get_address, get_virtual_host

_MIN_VERSION: Final = (3, 10)
_POINTS: Final = (
    "rabbitmq version", "rabbitmq topology", "rabbitmq permissions", "rabbitmq queues",
    "stale queues", "rabbitmq alarms",
)  # fmt: skip
_DEFAULT_EXCHANGE: Final = "the default exchange"


class _CloseReason:
    """Keep the reason that the broker gives when it closes the connection."""

    reason = ""

    def set(self, _: int, reason: str) -> None:
        self.reason = reason


@asynccontextmanager
async def _open_probes(url: str, closed: _CloseReason) -> AsyncIterator[Probes]:
    async with asyncio.timeout(SECONDS) as limit:
        async with open_connection(url, "check", on_close=closed.set) as connection:
            limit.reschedule(None)
            yield Probes(connection)


async def check_broker(settings: Settings, layout: Layout | None) -> list[Finding]:
    """Check every point in turn against the layout in force; a problem does not hide the others.

    Without a layout, assume the one that the settings lead to.
    """
    closed, expected = _CloseReason(), Expected.from_layout(settings, layout)
    try:
        async with _open_probes(settings.amqp_url, closed) as probes:
            return [
                *_report_connected(settings.amqp_url),
                *await _check_points(settings, probes, expected),
            ]
    except (BrokerRefused, BrokerUnavailable, TimeoutError) as error:
        return [
            *_report_not_connected(settings.amqp_url, error, closed),
            *not_checked(_POINTS, "no connection to RabbitMQ"),
        ]


async def _check_points(settings: Settings, probes: Probes, expected: Expected) -> list[Finding]:
    objects = expected.objects
    inspected = await gather_by_name((each.name, probes.inspect(each)) for each in objects)
    found = [check_version(probes.version)]
    # Comparing a queue that is being deleted would declare it anew: leave out those of a change.
    lasting: list[Exchange | Queue] = [*expected.topology.exchanges, *expected.topology.queues]
    found += await asyncio.gather(
        *(_check_drift(probes, each, inspected[each.name]) for each in lasting)
    )
    found += await _check_permissions(settings, probes, expected)
    found += report_depths(expected, inspected)
    found += await check_stale(settings, probes, expected)
    return [*found, *await _check_publishing(settings, expected.topology)]


def _report_connected(url: str) -> list[Finding]:
    return [
        ok("rabbitmq", f"answers at {get_address(url)}"),
        ok("rabbitmq credentials", f"user {URL(url).user or 'guest'}"),
        ok("rabbitmq virtual host", get_virtual_host(url)),
    ]


def _report_not_connected(url: str, error: Exception, closed: _CloseReason) -> list[Finding]:
    there, credentials, vhost = _report_connected(url)
    if isinstance(error, TimeoutError):
        error = BrokerUnavailable(f"{get_address(url)} does not answer within {SECONDS} s")
    if isinstance(error.__cause__, AuthenticationError | ProbableAuthenticationError):
        remedy = (
            "check user and password in OUTPLAN_AMQP_URL; guest may connect from localhost only"
        )
        refused = problem(credentials.point, "RabbitMQ refuses user or password", remedy)
        return [there, refused, *not_checked([vhost.point], "RabbitMQ refuses the credentials")]
    if closed.reason:
        remedy = "check the virtual host in OUTPLAN_AMQP_URL, and the user's permissions on it"
        return [there, credentials, problem(vhost.point, closed.reason, remedy)]
    text, _, remedy = str(error).partition("; ")
    return [
        problem(
            there.point, text, remedy or "check OUTPLAN_AMQP_URL, and that RabbitMQ runs there"
        ),
        *not_checked([credentials.point, vhost.point], "no connection to RabbitMQ"),
    ]


def check_version(version: str) -> Finding:
    """Report whether this version of RabbitMQ is too old, or known to fail."""
    if parse_version(version) < _MIN_VERSION:
        return problem(
            "rabbitmq version", version or "unknown", "upgrade to RabbitMQ 3.10 or later"
        )
    if defect := find_known_defect(version):
        text, _, remedy = defect.partition("; ")
        return warning("rabbitmq version", text, remedy)
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


async def _check_permissions(
    settings: Settings, probes: Probes, expected: Expected
) -> list[Finding]:
    topology = expected.topology
    configured = (
        *expected.objects, Queue(topology.lock, {}), Exchange(topology.former_exchange, "topic"),
    )  # fmt: skip
    bindings = (
        *topology.bindings,
        topology.former_binding,
        # RabbitMQ wants these permissions also for the alternate exchange.
        *(topology.bind_slot(SLOTS[0], queue) for queue in topology.command_queues),
    )
    configure = await gather_by_name((c.name, probes.probe_configure(c)) for c in configured)
    bind = await gather_by_name(
        (f"{b.source} to {b.destination}",
         probes.probe_bind(b.source, b.destination, to_exchange=b.to_exchange))
        for b in bindings
    )  # fmt: skip
    read = await gather_by_name((q.name, probes.probe_read(q.name)) for q in expected.consumed)
    return [
        _report_permission("permission to configure", configure, settings),
        _report_permission("permission to bind", bind, settings),
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
        f"rabbitmqctl set_permissions -p {get_virtual_host(settings.amqp_url)} {user} "
        f"'{names}' '{names}|^amq\\.default$' '{names}'"
    )


async def _check_publishing(settings: Settings, topology: Topology) -> list[Finding]:
    """Check what publishing needs, on a connection of its own, since an alarm blocks it."""
    # To declare the exchange with the alternate one takes the permission to write to that.
    exchanges = (topology.events.name, topology.alternate.name)
    try:
        async with _open_probes(settings.amqp_url, _CloseReason()) as probes:
            answers = {_DEFAULT_EXCHANGE: await probes.probe_write("")}
            if await probes.is_blocked():
                return _report_blocked()
            answers |= await gather_by_name((name, probes.probe_write(name)) for name in exchanges)
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
