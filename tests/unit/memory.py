"""A store in memory, for the handler's tests."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from service.decider import State
from service.documents import Fence, Record, Snapshot, Trial
from service.errors import StoreUnavailable
from service.messages import Event


@dataclass
class Memory:
    """Transactions one at a time; on demand one fails, or its commit's outcome is lost."""

    states: dict[str, State] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    held: dict[str, Fence] = field(default_factory=dict)
    claims: list[str] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    commits: int = 0
    lose_next: bool = False
    fail_next: bool = False

    async def claim(self, queue: str, worker: str) -> Fence:
        self.claims.append(f"{worker}:{queue}")
        old = self.held.get(queue, Fence(queue, 0))
        self.held[queue] = replace(old, epoch=old.epoch + 1)
        return self.held[queue]

    async def transact(self, work: Callable[["Memory"], Awaitable[Any]]) -> Any:
        if self.fail_next:
            self.fail_next = False
            raise StoreUnavailable("the server is away, and nothing was stored")
        found = await work(self)
        self.commits += 1
        if self.lose_next:
            self.lose_next = False
            raise StoreUnavailable("the primary stepped down; the commit's result is unknown")
        return found

    async def load(self, outplan_ids: Iterable[str], command_ids: Iterable[str]) -> Snapshot:
        return Snapshot(
            {id_: self.states[id_] for id_ in outplan_ids if id_ in self.states},
            {id_: self.records[id_] for id_ in command_ids if id_ in self.records},
        )

    async def save(self, records: Sequence[Record], known: dict[str, State]) -> None:
        assert known.items() <= self.states.items()
        for record in records:
            event: Event = record.event
            before = self.states.get(event.data.id)
            assert event.version == (before.version + 1 if before else 1)
            self.states[event.data.id] = State(event.data, event.version)
            self.records[event.id] = record

    async def put_on_trial(self, fence: Fence, trial: Trial) -> None:
        assert self.held[fence.queue].epoch == fence.epoch
        self.trials.append(trial)
        self.held[fence.queue] = replace(self.held[fence.queue], trial=trial)

    async def hold(self, fence: Fence) -> None:
        assert self.held[fence.queue].epoch == fence.epoch
        self.held[fence.queue] = replace(self.held[fence.queue], verdicts=fence.verdicts)

    async def read_fence(self, fence: Fence) -> Fence:
        assert self.held[fence.queue].epoch == fence.epoch
        return self.held[fence.queue]
