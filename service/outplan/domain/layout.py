"""Lay out the command queues, change the number of partitions, share queues among workers. Pure.

A change moves commands from the former queues to the new ones in phases (ADR 0014). In each phase
the workers consume only queues whose commands may be applied now:

    divert   No slot is bound, so new commands gather in the main queue. Workers consume the former
             partitions.
    replay   The slots are bound to the new partitions. Workers consume the main queue.
    retire   The slots are bound as in steady. Workers also consume queues that the layout does not
             have, before these are deleted.
    steady   Nothing changes.

A phase ends when a barrier message has come through every queue that it awaits.
"""

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal

from outplan.contract.slots import SLOTS
from outplan.contract.topology import Queue, Topology, build_topology

Phase = Literal["steady", "divert", "replay", "retire"]

MAX_PARTITIONS: Final = len(SLOTS)
# A worker that has not announced itself for so long, by MongoDB's clock, is dead to the others.
EXPIRY_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout in force; ``generation`` grows with each phase.

    ``partitions`` is the number in force, or the one that a change leads to. ``former`` is the
    number before the change; in retire, workers consume all queues below this number. ``drained``
    names the queues through which the barrier with this phase's ``token`` has come.
    """

    generation: int
    phase: Phase
    partitions: int
    former: int
    token: str = ""
    drained: frozenset[str] = frozenset()

    @property
    def is_steady(self) -> bool:
        return self.phase == "steady"

    @property
    def numbers(self) -> set[int]:
        """The numbers of partitions that a worker may be set to."""
        return {self.partitions, self.former} if self.phase in ("divert", "replay") else {
            self.partitions,
        }  # fmt: skip

    def start(self, partitions: int, token: str) -> "Layout":
        """Return the first phase of a change to another number of partitions."""
        phase: Phase = "divert" if self.partitions > 1 else "replay"
        return Layout(self.generation + 1, phase, partitions, self.partitions, token)

    def advance(self, token: str) -> "Layout":
        """Return the phase after this one, whose awaited queues are drained."""
        after: Phase = "replay" if self.phase == "divert" and self.partitions > 1 else "steady"
        former = self.partitions if after == "steady" else self.former
        return self._follow(after, former, token)

    def abort(self, token: str) -> "Layout":
        """Return a divert that leads back to the former number of partitions."""
        assert self.phase == "divert"
        return Layout(self.generation + 1, "divert", self.former, self.former, token)

    def retire(self, former: int, token: str) -> "Layout":
        """Return a phase that empties the queues from ``partitions`` up to below ``former``."""
        assert self.is_steady
        return self._follow("retire", former, token)

    def list_consumed(self, prefix: str) -> list[Queue]:
        """List the queues that workers consume in this phase."""
        topology = self._build_largest_topology(prefix)
        main, numbered = topology.main, topology.partitions
        match self.phase:
            case "divert":
                return [*numbered[: count_queues(self.former)]]
            case "replay":
                return [main]
            case "retire":
                return [main, *numbered[: max(count_queues(self.partitions), self.former)]]
            case "steady":
                return [main, *numbered[: count_queues(self.partitions)]]

    def list_awaited(self, prefix: str) -> list[Queue]:
        """List the queues that a barrier must come through before the next phase."""
        topology = self._build_largest_topology(prefix)
        numbered = topology.partitions
        match self.phase:
            case "divert":
                return [*numbered[: count_queues(self.former)]]
            case "replay":
                return [topology.main]
            case "retire":
                return [*numbered[count_queues(self.partitions) : self.former]]
            case "steady":
                return []

    def build_topology(self, prefix: str) -> Topology:
        """Build the topology that this layout leads to."""
        return build_topology(prefix, self.partitions)

    def _follow(self, phase: Phase, former: int, token: str) -> "Layout":
        return Layout(self.generation + 1, phase, self.partitions, former, token)

    def _build_largest_topology(self, prefix: str) -> Topology:
        # A single retired queue is number 0 of at least two.
        return build_topology(prefix, max(self.partitions, self.former, 2))


def describe_partitions(number: int) -> str:
    """Return a number of partitions in words."""
    return "1 partition" if number == 1 else f"{number} partitions"


def count_queues(partitions: int) -> int:
    """Return how many numbered queues there are: a single partition is the main queue."""
    return partitions if partitions > 1 else 0


@dataclass(frozen=True, slots=True)
class Share:
    """One worker's part of a layout.

    Of the ``queues`` that are consumed now, the ``own`` partitions are the worker's. Nobody owns
    the main queue: every worker consumes it, and RabbitMQ activates the first one. ``workers`` is
    how many are alive.
    """

    layout: Layout
    queues: tuple[Queue, ...]
    own: tuple[str, ...]
    workers: int

    @property
    def consumed(self) -> tuple[Queue, ...]:
        """The queues that the worker consumes."""
        return tuple(q for q in self.queues if not q.is_partition or q.name in self.own)

    def is_same(self, other: "Share") -> bool:
        """Tell whether a session for ``other`` consumes what it should."""
        return (self.layout.generation, self.own) == (other.layout.generation, other.own)


def assign_shares(layout: Layout, prefix: str, workers: Collection[str]) -> dict[str, Share]:
    """Return the share of each live worker."""
    queues = tuple(layout.list_consumed(prefix))
    owners = assign([queue.name for queue in queues if queue.is_partition], workers)
    return {
        worker: Share(
            layout,
            queues,
            tuple(queue.name for queue in queues if owners.get(queue.name) == worker),
            len(workers),
        )
        for worker in workers
    }


def assign(queues: Collection[str], workers: Collection[str]) -> dict[str, str]:
    """Assign each queue to a worker by rendezvous hashing with bounded shares.

    Shares differ by one at most. Every worker computes the same from the same list.
    """
    fewest, extra = divmod(len(queues), len(workers) or 1)
    pairs = sorted(((_weigh(w, q), q, w) for w in workers for q in queues), reverse=True)
    owners: dict[str, str] = {}
    shares = dict.fromkeys(workers, 0)
    for _, queue, worker in pairs:
        if queue in owners or shares[worker] > fewest or (shares[worker] == fewest and not extra):
            continue
        extra -= shares[worker] == fewest
        shares[worker] += 1
        owners[queue] = worker
    return owners


def _weigh(worker: str, queue: str) -> bytes:
    return sha256(f"{worker}\n{queue}".encode()).digest()
