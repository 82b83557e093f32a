"""Check command queues: their depths, and those that no partition uses."""

from dataclasses import dataclass

from outplan.contract.topology import Exchange, Queue, Topology, build_topology
from outplan.domain.layout import MAX_PARTITIONS, Layout
from outplan.operations.findings import Finding, not_checked, ok, problem, warning
from outplan.operations.layout_check import assume_layout
from outplan.operations.probes import ProbeResult, Probes, gather_by_name
from outplan.settings import Settings


@dataclass(frozen=True, slots=True)
class Expected:
    """List what a layout has in RabbitMQ.

    During a change ``topology`` is what it leads to, and ``queues`` includes the former ones.
    Workers read the ``consumed`` queues. If MongoDB does not tell the layout, it is assumed and
    ``is_known`` is false.
    """

    layout: Layout
    topology: Topology
    queues: tuple[Queue, ...]
    consumed: tuple[Queue, ...]
    is_known: bool

    @classmethod
    def from_layout(cls, settings: Settings, layout: Layout | None) -> "Expected":
        """Describe a layout; None stands for the one that the settings lead to."""
        found, prefix = layout or assume_layout(settings), settings.prefix
        topology = found.build_topology(prefix)
        consumed = found.list_consumed(prefix)
        former = build_topology(prefix, found.former).partitions
        queues = {queue.name: queue for queue in (*topology.queues, *former, *consumed)}
        return cls(
            found, topology, tuple(queues.values()), tuple(consumed), is_known=layout is not None
        )

    @property
    def objects(self) -> list[Exchange | Queue]:
        return [*self.topology.exchanges, *self.queues]


def report_depths(expected: Expected, inspected: dict[str, ProbeResult]) -> list[Finding]:
    """Report the messages and consumers of each queue that exists."""
    consumed, rejected = {queue.name for queue in expected.consumed}, expected.topology.rejected
    return [
        _report_rejected(queue, inspected[queue.name])
        if queue == rejected
        else _report_depth(queue, inspected[queue.name], queue.name in consumed)
        for queue in expected.queues
        if inspected[queue.name].outcome == "done"
    ]


def _report_rejected(queue: Queue, answer: ProbeResult) -> Finding:
    text = _describe_depth(answer)
    waiting = answer.value.message_count
    return ok(f"depth of {queue.name}", f"{text}; see outplan rejected list" if waiting else text)


def _report_depth(queue: Queue, answer: ProbeResult, is_consumed: bool) -> Finding:
    point, text = f"depth of {queue.name}", _describe_depth(answer)
    if not is_consumed:
        return ok(point, f"{text}; workers do not consume it in this phase")
    if answer.value.consumer_count:
        return ok(point, text)
    if answer.value.message_count:
        return problem(point, text, "no worker consumes: start one with outplan run")
    return warning(point, f"{text}: no worker consumes", "start one with outplan run")


def _describe_depth(answer: ProbeResult) -> str:
    waiting, consumers = answer.value.message_count, answer.value.consumer_count
    return f"{waiting:,} waiting, {consumers} consumer{'' if consumers == 1 else 's'}"


async def check_stale(settings: Settings, probes: Probes, expected: Expected) -> list[Finding]:
    """Look for what another number of partitions, or a former version, left behind."""
    former = Exchange(expected.topology.former_exchange, "topic")
    found = _report_former(former, await probes.inspect(former))
    if not expected.is_known:
        return [*found, *not_checked(["stale queues"], "the layout is unknown")]
    in_use = {queue.name for queue in expected.queues}
    possible = build_topology(settings.prefix, MAX_PARTITIONS).partitions
    inspected = await gather_by_name(
        (queue.name, probes.inspect(queue)) for queue in possible if queue.name not in in_use
    )
    return [*found, _report_stale(inspected, expected.layout)]


def _report_former(exchange: Exchange, inspected: ProbeResult) -> list[Finding]:
    if inspected.outcome != "done":
        return []
    text = (
        "a former version left it; it may deliver each command to a second queue, and old commands "
        "would overwrite newer data once somebody consumes that"
    )
    remedy = "start a worker of this version, which deletes it, and stop all of earlier versions"
    return [problem(f"exchange {exchange.name}", text, remedy)]


def _report_stale(inspected: dict[str, ProbeResult], layout: Layout) -> Finding:
    point = "stale queues"
    if failed := [name for name, answer in inspected.items() if answer.outcome == "failed"]:
        return not_checked([point], f"{failed[0]}: {inspected[failed[0]].text}")[0]
    stale = {name: answer for name, answer in inspected.items() if answer.outcome == "done"}
    if not stale:
        return ok(point, "none: each command queue belongs to a partition")
    listed = "; ".join(f"{name}: {_describe_depth(answer)}" for name, answer in stale.items())
    text = f"no partition uses {listed}"
    remedy = (
        f"run outplan partitions {layout.partitions} while a worker runs: the worker handles what "
        "is in them, then they are deleted"
    )
    waiting = sum(answer.value.message_count for answer in stale.values())
    return (problem if waiting else warning)(point, text, remedy)
