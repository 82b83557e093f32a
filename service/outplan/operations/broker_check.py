"""Whether RabbitMQ is what a worker needs. Nothing is changed, and no running worker notices."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiormq.exceptions import AuthenticationError, ProbableAuthenticationError
from yarl import URL

from outplan.contract.topology import Exchange, Queue, Topology, topology
from outplan.errors import BrokerRefused, BrokerUnavailable, OutplanError
from outplan.operations.findings import Finding, not_checked, ok, problem
from outplan.operations.probes import SECONDS, Answer, Probes
from outplan.rabbitmq.connection import open_connection
from outplan.rabbitmq.reader import FrameHandler
from outplan.settings import Settings

_OLDEST: Final = (3, 10)
_POINTS: Final = (
    "rabbitmq version", "rabbitmq topology", "rabbitmq permissions", "rabbitmq queues",
    "rabbitmq alarms",
)  # fmt: skip
_PLUGIN: Final = "plugin rabbitmq_consistent_hash_exchange"
_DEFAULT_EXCHANGE: Final = "the default exchange"


class _Reason(FrameHandler):
    """Keeps why the broker closed the connection."""

    reason = ""

    def on_close(self, code: int, reason: str) -> None:  # noqa: ARG002
        self.reason = reason


@asynccontextmanager
async def _probes(url: str, heard: _Reason) -> AsyncIterator[Probes]:
    async with asyncio.timeout(SECONDS) as limit:
        async with open_connection(url, "check", heard) as connection:
            limit.reschedule(None)
            yield Probes(connection)


async def broker_findings(settings: Settings) -> list[Finding]:
    """Ask one thing after another; one that fails does not hide the others."""
    heard = _Reason()
    try:
        async with _probes(settings.amqp_url, heard) as probes:
            return [*_connected(settings.amqp_url), *await _findings(settings, probes)]
    except (BrokerRefused, BrokerUnavailable, TimeoutError) as error:
        return [
            *_not_connected(settings.amqp_url, error, heard),
            *not_checked(_POINTS, "no connection to RabbitMQ"),
        ]


async def _findings(settings: Settings, probes: Probes) -> list[Finding]:
    layout = topology(settings.prefix, settings.partitions)
    found = [_version(probes.version)]
    if layout.partitioner is not None:
        found.append(await _plugin(settings, layout.partitioner))
    looked = {thing.name: await probes.look(thing) for thing in _things(layout)}
    for thing in _things(layout):
        found.append(await _drift(probes, thing, looked[thing.name]))
    found += await _permissions(settings, probes, layout)
    found += _depths(layout, looked)
    return [*found, *await _publishing(settings)]


def _things(layout: Topology) -> list[Exchange | Queue]:
    return [*layout.exchanges, *layout.queues]


def _address(url: str) -> str:
    target = URL(url)
    port = target.port or (5671 if target.scheme == "amqps" else 5672)
    return f"{target.host}:{port}"


def _vhost(url: str) -> str:
    return URL(url).path.removeprefix("/") or "/"


def _connected(url: str) -> list[Finding]:
    return [
        ok("rabbitmq", f"answers at {_address(url)}"),
        ok("rabbitmq credentials", f"user {URL(url).user or 'guest'}"),
        ok("rabbitmq virtual host", _vhost(url)),
    ]


def _not_connected(url: str, error: Exception, heard: _Reason) -> list[Finding]:
    there, credentials, vhost = _connected(url)
    if isinstance(error, TimeoutError):
        error = BrokerUnavailable(f"no answer within {SECONDS} s")
    if isinstance(error.__cause__, AuthenticationError | ProbableAuthenticationError):
        remedy = "check user and password in OUTPLAN_AMQP_URL; guest may only connect locally"
        refused = problem(credentials.point, "RabbitMQ refuses them", remedy)
        return [there, refused, *not_checked([vhost.point], "the credentials are refused")]
    if heard.close_code:
        remedy = "check the path of OUTPLAN_AMQP_URL, and the user's permission for it"
        return [there, credentials, problem(vhost.point, heard.reason, remedy)]
    remedy = "check OUTPLAN_AMQP_URL, and that RabbitMQ runs there"
    return [
        problem(there.point, f"{_address(url)}: {error}", remedy),
        *not_checked([credentials.point, vhost.point], "no connection to RabbitMQ"),
    ]


def _version(version: str) -> Finding:
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < _OLDEST:
        return problem("rabbitmq version", version or "unknown", "3.10 is the oldest that will do")
    return ok("rabbitmq version", version)


async def _plugin(settings: Settings, partitioner: Exchange) -> Finding:
    # On 3.10 the answer to an unknown type is the connection's end, so it is not the shared one.
    try:
        async with _probes(settings.amqp_url, _Reason()) as probes:
            answer = await probes.exchange_type(partitioner.name, partitioner.type)
    except (OutplanError, TimeoutError) as error:
        answer = Answer("failed", str(error))
    if re.search("(unknown|invalid) exchange type", answer.text):
        remedy = f"rabbitmq-plugins enable {_PLUGIN.split()[1]}, or OUTPLAN_PARTITIONS=1"
        return problem(_PLUGIN, "not enabled", remedy)
    if answer.kind == "wrong":
        return ok(_PLUGIN, "enabled")
    return not_checked([_PLUGIN], answer.text)[0]


async def _drift(probes: Probes, thing: Exchange | Queue, looked: Answer) -> Finding:
    point = f"{'queue' if isinstance(thing, Queue) else 'exchange'} {thing.name}"
    if looked.kind == "missing":
        return ok(point, "not there yet; a worker declares it")
    compared = await probes.compare(thing) if looked.kind == "done" else looked
    if compared.kind == "done":
        return ok(point, "as it should be")
    if compared.kind == "refused":
        return not_checked([point], "it is there; to compare it takes the permission to configure")[
            0
        ]
    remedy = "a worker refuses to start: delete it once it is empty, or set OUTPLAN_PREFIX"
    if compared.kind == "failed":
        remedy = "see whether its node is up: rabbitmq-queues check_if_node_is_quorum_critical"
    return problem(point, compared.text, remedy)


async def _permissions(settings: Settings, probes: Probes, layout: Topology) -> list[Finding]:
    configure = {thing.name: await probes.configure(thing) for thing in _things(layout)}
    binds = [
        await probes.bind(b.source, b.destination, to_exchange=b.to_exchange)
        for b in layout.bindings
    ]
    read = {queue.name: await probes.read(queue.name) for queue in layout.command_queues}
    bound = {
        f"{b.source} to {b.destination}": a for b, a in zip(layout.bindings, binds, strict=True)
    }
    return [
        _permission("permission to configure", configure, settings),
        _permission("permission to bind", bound, settings),
        _permission("permission to read", read, settings),
    ]


def _permission(point: str, answers: dict[str, Answer], settings: Settings) -> Finding:
    if refused := [name for name, answer in answers.items() if answer.kind == "refused"]:
        return problem(point, f"refused for {', '.join(refused)}", _grant(settings))
    if failed := [name for name, answer in answers.items() if answer.kind == "failed"]:
        return not_checked([point], f"{failed[0]}: {answers[failed[0]].text}")[0]
    return ok(point, _summary(list(answers)))


def _summary(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:4])}, … ({len(names)})"


def _grant(settings: Settings) -> str:
    names = f"^{re.escape(settings.prefix)}\\."
    user = URL(settings.amqp_url).user or "guest"
    return (
        f"rabbitmqctl set_permissions -p {_vhost(settings.amqp_url)} {user} "
        f"'{names}' '{names}|^amq\\.default$' '{names}'"
    )


def _depths(layout: Topology, looked: dict[str, Answer]) -> list[Finding]:
    there = [q for q in layout.queues if looked[q.name].kind == "done"]
    return [_depth(queue, looked[queue.name], queue is layout.rejected) for queue in there]


def _depth(queue: Queue, answer: Answer, is_rejected: bool) -> Finding:
    waiting, consumers = answer.value.message_count, answer.value.consumer_count
    point, plural = f"depth of {queue.name}", "" if consumers == 1 else "s"
    text = f"{waiting:,} waiting, {consumers} consumer{plural}"
    if is_rejected:
        return ok(point, f"{text}; outplan rejected list shows them" if waiting else text)
    if waiting and not consumers:
        return problem(point, text, "no worker runs: outplan run")
    return ok(point, text if consumers else f"{text}: no worker runs")


async def _publishing(settings: Settings) -> list[Finding]:
    """What it takes to publish; on a connection that an alarm may hold up for ever."""
    layout = topology(settings.prefix, settings.partitions)
    try:
        async with _probes(settings.amqp_url, _Reason()) as probes:
            answers = {_DEFAULT_EXCHANGE: await probes.write("")}
            if await probes.held_up():
                return _held_up()
            answers[layout.events.name] = await probes.write(layout.events.name)
    except (OutplanError, TimeoutError) as error:
        return not_checked(["permission to write", "rabbitmq alarms"], str(error))
    return [
        _permission("permission to write", answers, settings),
        ok("rabbitmq alarms", "none: publishers are not held up"),
    ]


def _held_up() -> list[Finding]:
    remedy = "rabbitmq-diagnostics alarms tells which: memory, or disk space"
    return [
        *not_checked(["permission to write"], "an alarm holds publishers up"),
        problem("rabbitmq alarms", "an alarm is raised: publishers are held up", remedy),
    ]
