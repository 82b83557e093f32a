"""A registry in memory: one main queue, whose layout never changes."""

from outplan.domain.layout import Layout
from outplan.domain.records import WorkerReport

_LAYOUT = Layout(1, "steady", 1, 1)


class MemoryRegistry:
    """The registry of a single worker, which is always alive."""

    async def read_layout(self) -> Layout | None:
        return _LAYOUT

    async def ensure_layout(self, partitions: int) -> Layout:  # noqa: ARG002 - as the real one's
        return _LAYOUT

    async def mark_drained(self, queue: str, token: str) -> None:
        """Do nothing: no phase waits for a barrier."""

    async def announce(self, worker: str, report: WorkerReport) -> None:
        """Do nothing: there is no other worker."""

    async def list_workers(self) -> list[str]:
        return []

    async def leave(self, worker: str) -> None:
        """Do nothing: there is no other worker."""
