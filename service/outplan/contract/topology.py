"""Define exchanges, queues and bindings; ``rabbitmq.session`` declares them.

RabbitMQ 3.10 and 4 both know every argument here and read it alike. So an upgrade of the broker
does not turn the declaration of an existing queue into a conflict.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

Arguments = Mapping[str, str | int | bool]

# The prefetch of each queue's consumer. Never change it: a quorum queue requeues messages behind
# those that were requeued before and not redelivered yet. So order holds only while each consumer
# is sent at once everything that its predecessor returned (ADR 0004).
PREFETCH: Final = 1_000
# The last resort. A worker's death raises the delivery count of every prefetched message, healthy
# ones too. So the worker finds poison messages by itself, long before this (ADR 0006).
DELIVERY_LIMIT: Final = 1_000
# No limit, in a form that both versions take: 3.10 refuses -1, and 4 drops at 20 by default.
NO_DELIVERY_LIMIT: Final = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: str
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable quorum queue."""

    name: str
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding from an exchange to a queue, or to an exchange."""

    source: str
    destination: str
    routing_key: str
    to_exchange: bool = False


@dataclass(frozen=True, slots=True)
class Topology:
    """The exchanges, queues and bindings of a service, in the order of their declaration."""

    commands: Exchange
    events: Exchange
    command_queues: tuple[Queue, ...]
    rejected: Queue
    partitioner: Exchange | None
    bindings: tuple[Binding, ...]

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        return tuple(e for e in (self.commands, self.events, self.partitioner) if e)

    @property
    def queues(self) -> tuple[Queue, ...]:
        return (self.rejected, *self.command_queues)


def build_topology(prefix: str = "outplan", partitions: int = 1) -> Topology:
    """Lay out the contract's exchanges and queues (sections 2, 4 and 6) under ``prefix``."""
    commands = Exchange(f"{prefix}.commands", "topic")
    rejected = Queue(
        f"{prefix}.rejected",
        {"x-queue-type": "quorum", "x-delivery-limit": NO_DELIVERY_LIMIT},
    )
    if partitions == 1:
        queues: tuple[Queue, ...] = (_command_queue(f"{prefix}.commands", rejected),)
        partitioner = None
        bindings: tuple[Binding, ...] = (Binding(commands.name, queues[0].name, "#"),)
    else:
        queues = tuple(
            _command_queue(f"{prefix}.commands.{n}", rejected) for n in range(partitions)
        )
        partitioner = Exchange(
            f"{prefix}.commands.partitions", "x-consistent-hash", {"hash-header": "outplan_id"}
        )
        bindings = (
            Binding(commands.name, partitioner.name, "#", to_exchange=True),
            # For a consistent-hash exchange the routing key is the queue's weight.
            *(Binding(partitioner.name, queue.name, "1") for queue in queues),
        )
    return Topology(
        commands=commands,
        events=Exchange(f"{prefix}.events", "topic"),
        command_queues=queues,
        rejected=rejected,
        partitioner=partitioner,
        bindings=bindings,
    )


def _command_queue(name: str, rejected: Queue) -> Queue:
    return Queue(
        name,
        {
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": rejected.name,
            # Dead-lettering is at-most-once without both of these.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )
