"""Define exchanges, queues and bindings; ``rabbitmq.session`` declares them.

RabbitMQ 3.10 to 4.3 know every argument here and read it alike. So an upgrade of the broker does
not turn the declaration of an existing queue into a conflict.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from outplan.contract.slots import SLOTS, partition_of

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
# A year, instead of the broker's half an hour. From 4.3 on, RabbitMQ returns the messages that a
# consumer holds for longer than this, and only those: later ones would overtake them.
CONSUMER_TIMEOUT_MILLISECONDS: Final = 365 * 86_400_000
# The AMQP type of a control message (ADR 0014). Its message_id is the token of the layout's phase.
BARRIER: Final = "outplan_barrier"
# The message_id of a barrier that belongs to no phase, and only finds out who is active.
NO_PHASE: Final = "no phase"


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
    is_partition: bool = False


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding from an exchange to a queue, or to an exchange."""

    source: str
    destination: str
    routing_key: str
    to_exchange: bool = False


@dataclass(frozen=True, slots=True)
class Topology:
    """The exchanges, queues and bindings of a service, in the order of their declaration.

    ``commands`` passes everything on to ``slots``. Its bindings lead to the ``partitions``; what
    none of them matches goes through ``alternate`` to the queue ``main``. ``lock`` is the name of
    the exclusive queue whose owner may change the bindings of ``slots``. ``former_binding`` and
    ``former_exchange`` routed commands before there were slots; a worker removes them.
    """

    commands: Exchange
    slots: Exchange
    alternate: Exchange
    events: Exchange
    main: Queue
    partitions: tuple[Queue, ...]
    rejected: Queue
    bindings: tuple[Binding, ...]
    lock: str
    former_binding: Binding
    former_exchange: str

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        return (self.alternate, self.slots, self.commands, self.events)

    @property
    def command_queues(self) -> tuple[Queue, ...]:
        return (self.main, *self.partitions)

    @property
    def queues(self) -> tuple[Queue, ...]:
        return (self.rejected, *self.command_queues)

    @property
    def slot_bindings(self) -> tuple[Binding, ...]:
        """The binding of each slot to its partition; none with a single partition."""
        if not self.partitions:
            return ()
        return tuple(
            self.bind_slot(slot, self.partitions[partition_of(slot, len(self.partitions))])
            for slot in SLOTS
        )

    def bind_slot(self, slot: str, queue: Queue) -> Binding:
        """Return the binding of a slot to a queue."""
        return Binding(self.slots.name, queue.name, f"*.{slot}")


def build_topology(prefix: str = "outplan", partitions: int = 1) -> Topology:
    """Lay out the contract's exchanges and queues (sections 2, 4 and 6) under ``prefix``."""
    commands = Exchange(f"{prefix}.commands", "topic")
    alternate = Exchange(f"{prefix}.commands.alternate", "fanout")
    slots = Exchange(f"{prefix}.commands.slots", "topic", {"alternate-exchange": alternate.name})
    rejected = Queue(
        f"{prefix}.rejected",
        {"x-queue-type": "quorum", "x-delivery-limit": NO_DELIVERY_LIMIT},
    )
    main = _command_queue(f"{prefix}.commands", rejected)
    return Topology(
        commands=commands,
        slots=slots,
        alternate=alternate,
        events=Exchange(f"{prefix}.events", "topic"),
        main=main,
        partitions=tuple(
            replace(_command_queue(f"{main.name}.{n}", rejected), is_partition=True)
            for n in range(partitions if partitions > 1 else 0)
        ),
        rejected=rejected,
        bindings=(
            Binding(alternate.name, main.name, ""),
            Binding(commands.name, slots.name, "#", to_exchange=True),
        ),
        lock=f"{prefix}.commands.lock",
        former_binding=Binding(commands.name, main.name, "#"),
        former_exchange=f"{prefix}.commands.partitions",
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
