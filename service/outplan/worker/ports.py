"""The worker's view of RabbitMQ and MongoDB, as protocols.

``rabbitmq.session`` and ``mongodb.store`` implement them, and so does ``testing.memory``.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence, Set
from typing import Protocol, TypeVar

from outplan.contract.amqp import Delivery, Publication
from outplan.domain.decider import State
from outplan.domain.layout import Layout
from outplan.domain.records import (
    Attempt,
    Fence,
    OutplanVersion,
    Record,
    Snapshot,
    WorkerReport,
)

T = TypeVar("T")


class BrokerSession(Protocol):
    """One session with the broker. Any call may raise BrokerUnavailable, which ends it.

    ``known_defect`` describes a defect of this version of the broker; None for no known one.
    ``other_consumers`` has, for each queue, the number of active consumers before this session's.
    """

    known_defect: str | None
    other_consumers: Mapping[str, int]

    @property
    def delivered(self) -> Set[str]:
        """The queues that have delivered a message."""

    @property
    def unacked(self) -> int:
        """The number of deliveries that are not acked."""

    async def receive(self, most: int) -> list[Delivery]:
        """Wait for a delivery and return up to ``most``; return none once receiving has stopped."""

    def stop_receiving(self) -> None:
        """Make ``receive`` return nothing from now on."""

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish and await every confirm; the events of one outplan in their order."""

    async def ack(self, delivery: Delivery) -> None:
        """Ack this delivery and all before it."""

    async def confirm_ownership(self) -> None:
        """Return once the broker has answered on the consuming channel.

        Until then nothing that it delivered on that channel has gone to another consumer.
        """

    async def watch(self) -> None:
        """Wait for the end of the session. Raises BrokerUnavailable with the reason."""

    async def is_blocked(self) -> bool:
        """Tell whether a memory or disk alarm blocks publishers."""

    async def send_barriers(self, queues: Iterable[str]) -> None:
        """Send a barrier that belongs to no phase through each queue, to its active consumer."""


class BatchTransaction(Protocol):
    """The reads and writes of one batch: all of them are stored, or none."""

    async def load(
        self,
        outplan_ids: Iterable[str],
        command_ids: Iterable[str],
        past: Collection[OutplanVersion] = (),
    ) -> Snapshot:
        """Read outplans by id, events by command id, and outplans as of ``past`` versions."""

    async def save(
        self, records: Sequence[Record], known: Mapping[str, State], fences: Sequence[Fence] = ()
    ) -> None:
        """Write events, the outplans that they leave, and the fences' outcomes last.

        ``known`` has the outplans' states as they were read. Raises StoreConflict if an outplan
        has another version by now, or an event's id or place in its outplan's history is taken.
        Raises Fenced if another worker has claimed a queue.
        """

    async def read_fence(self, fence: Fence) -> Fence:
        """Read the fence as it is stored now. Raises Fenced."""


class OutplanStore(Protocol):
    """The documents and their history, for one batch at a time.

    Any call may raise StoreUnavailable, which does not tell whether anything was stored.
    """

    async def prepare(self) -> None:
        """Check that transactions work; make collections, validators and indexes."""

    async def ping(self) -> None:
        """Await an answer from the primary."""

    async def claim(self, queue: str, worker: str, generation: int) -> Fence:
        """Raise the queue's epoch, which fences off every earlier holder.

        Raises LayoutChanged if a layout of a later generation is in force.
        """

    async def release(self, fences: Sequence[Fence]) -> None:
        """Note that the sessions with these claims end cleanly; reduce attempts to those given."""

    async def record_attempt(self, fence: Fence, attempt: Attempt) -> None:
        """Write the attempt that starts next. Raises Fenced."""

    async def transact(self, work: Callable[[BatchTransaction], Awaitable[T]]) -> T:
        """Run ``work`` in one transaction, to its end even if the caller is cancelled.

        Raises what ``work`` does, StoreConflict and Unprocessable.
        """


class Registry(Protocol):
    """The layout of the command queues, and the live workers, of one prefix.

    Any call may raise StoreUnavailable.
    """

    async def read_layout(self) -> Layout | None:
        """Return the layout in force; None on an empty system."""

    async def ensure_layout(self, partitions: int) -> Layout:
        """Return the layout in force; on an empty system, write one with so many partitions."""

    async def mark_drained(self, queue: str, token: str) -> None:
        """Note that the phase's barrier came through a queue; ignore the token of another phase."""

    async def announce(self, worker: str, report: WorkerReport) -> None:
        """Note that a worker is alive, and what it reports about itself."""

    async def list_workers(self) -> list[str]:
        """List the live workers."""

    async def leave(self, worker: str) -> None:
        """Forget a worker that stops."""
