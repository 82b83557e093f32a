"""The store in memory, with faults on demand, for the handler's tests."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from outplan.domain.decider import State
from outplan.domain.records import Attempt, Fence
from outplan.errors import StoreConflict, StoreUnavailable
from outplan.testing.memory.store import MemoryStore, MemoryTransaction


class Died(Exception):
    """Raised in place of a worker's end."""


class FaultyStore(MemoryStore):
    """A store that counts; on demand a transaction fails, conflicts, is lost or ends its worker."""

    def __init__(
        self,
        states: dict[str, State] | None = None,
        *,
        lose_next: bool = False,
        fail_next: bool = False,
        conflicts: int = 0,
        conflict: type[StoreConflict] = StoreConflict,
    ) -> None:
        super().__init__(states or {})
        self.claims: list[str] = []
        self.attempts: list[Attempt] = []
        self.commits = 0
        self.lose_next = lose_next
        self.fail_next = fail_next
        self.conflicts = conflicts
        self.conflict = conflict
        self.die_next = False

    async def claim(self, queue: str, worker: str, generation: int) -> Fence:
        self.claims.append(f"{worker}:{queue}")
        return await super().claim(queue, worker, generation)

    async def record_attempt(self, fence: Fence, attempt: Attempt) -> None:
        await super().record_attempt(fence, attempt)
        self.attempts.append(attempt)

    async def release(self, fences: Sequence[Fence]) -> None:
        await super().release(fences)
        self.attempts += [fence.attempt for fence in fences if fence.attempt]

    async def transact(self, work: Callable[[MemoryTransaction], Awaitable[Any]]) -> Any:
        if self.fail_next:
            self.fail_next = False
            raise StoreUnavailable("the server is away, and nothing was stored")
        if self.conflicts:
            self.conflicts -= 1
            raise self.conflict("somebody else was first")
        found = await super().transact(self._deadly(work) if self.die_next else work)
        self.commits += 1
        if self.lose_next:
            self.lose_next = False
            raise StoreUnavailable("the primary stepped down; the commit's result is unknown")
        return found

    def _deadly(
        self, work: Callable[[MemoryTransaction], Awaitable[Any]]
    ) -> Callable[[MemoryTransaction], Awaitable[Any]]:
        async def deadly(transaction: MemoryTransaction) -> None:
            self.die_next = False
            await work(transaction)
            raise Died

        return deadly
