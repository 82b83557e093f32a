"""Know which queues are this worker's: announce it, read the layout and the other workers."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Final

from outplan.domain.layout import EXPIRY_SECONDS, Layout, Share, assign_shares
from outplan.domain.records import WorkerReport
from outplan.errors import LayoutChanged, LayoutDiffers, OutplanError
from outplan.worker.ports import Registry

_HEARTBEAT_SECONDS: Final = 1
_LEAVE_SECONDS: Final = 2
# After so long without an answer, this worker cannot tell who else has been away.
_BLIND_SECONDS: Final = EXPIRY_SECONDS / 2


class Membership:
    """One worker's membership under a prefix.

    ``partitions`` is the worker's setting, or None. The worker announces what ``report`` returns.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        prefix: str,
        worker: str,
        partitions: int | None,
        report: Callable[[], WorkerReport],
    ) -> None:
        self._registry = registry
        self._prefix = prefix
        self._worker = worker
        self._partitions = partitions
        self._report = report
        self._workers: set[str] = set()
        self._last_answer = inf
        self._trust_until = -inf

    @property
    def workers(self) -> frozenset[str]:
        """The live workers, as last read."""
        return frozenset(self._workers)

    async def require_setting(self) -> None:
        """Write the layout of an empty system. Raises LayoutDiffers if another one is in force."""
        layout = await self._registry.ensure_layout(self._partitions or 1)
        if self._partitions is not None and self._partitions not in layout.numbers:
            raise LayoutDiffers(
                f"OUTPLAN_PARTITIONS={self._partitions}, but the number of partitions in force is "
                f"{layout.partitions}: set {layout.partitions} or unset it, or change the number "
                f"with outplan partitions {self._partitions}"
            )

    async def read_share(self) -> Share:
        """Return this worker's share of the layout in force. Raises StoreUnavailable."""
        layout = await self._read_layout()
        live = {self._worker, *await self._registry.list_workers()}
        self._workers = self._keep_missing(live)
        return assign_shares(layout, self._prefix, self._workers)[self._worker]

    async def require_layout(self, share: Share) -> None:
        """Raise LayoutChanged if the share's layout is not in force any more."""
        layout = await self._read_layout()
        if layout.generation != share.layout.generation:
            raise LayoutChanged(f"a layout of generation {layout.generation} is in force")

    async def wait_for_change(self, share: Share) -> None:
        """Announce this worker once a second, until it has another share.

        Only a worker with a session announces itself. A store that is away changes nothing.
        """
        while True:
            with suppress(OutplanError):
                await self._registry.announce(self._worker, self._report())
                if not (await self.read_share()).is_same(share):
                    return
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    async def leave(self) -> None:
        """Let the others share this worker's queues at once; give up after 2 s."""
        with suppress(OutplanError, TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._registry.leave(self._worker)

    async def _read_layout(self) -> Layout:
        layout = await self._registry.read_layout()
        # Somebody may have deleted it.
        return layout or await self._registry.ensure_layout(self._partitions or 1)

    def _keep_missing(self, live: set[str]) -> set[str]:
        """Return the live workers, and for a while the missing ones too after an outage.

        After an outage of the store all announcements are old. Whoever announces itself first
        would take everybody for dead.
        """
        now = asyncio.get_running_loop().time()
        if now - self._last_answer > _BLIND_SECONDS:
            self._trust_until = now + EXPIRY_SECONDS
        self._last_answer = now
        return live | self._workers if now < self._trust_until else live
