"""Keep the layout of the command queues, and who is alive to consume them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pymongo
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from outplan.domain.layout import EXPIRY_SECONDS, Layout
from outplan.domain.records import WorkerReport
from outplan.errors import StoreConflict
from outplan.mongodb.documents import (
    build_layout_document,
    build_report_document,
    parse_layout,
)
from outplan.mongodb.translation import translate_errors
from outplan.mongodb.validators import FENCES, LAYOUTS, WORKERS

# A call that a hung server does not answer keeps one of the driver's threads, and a worker that
# stops waits for these.
_SECONDS: Final = 5


class MongoRegistry:
    """A ``worker.ports.Registry`` for one prefix, from ``MongoStore.open_registry``.

    Any call may raise StoreUnavailable.
    """

    def __init__(self, database: Any, prefix: str) -> None:
        # A layout that a failover takes back must not be acted on.
        self._layouts = database.get_collection(LAYOUTS, read_concern=ReadConcern("majority"))
        self._workers = database[WORKERS]
        self._fences = database[FENCES]
        self._prefix = prefix

    async def read_layout(self) -> Layout | None:
        """Return the layout in force; None on an empty system."""
        with _translate_errors():
            document = await self._layouts.find_one({"_id": self._prefix})
        return None if document is None else parse_layout(document)

    async def ensure_layout(self, partitions: int) -> Layout:
        """Return the layout in force; on an empty system, write one with so many partitions."""
        with _translate_errors():
            # If somebody has deleted the layout, the fences still have its generation.
            fence = await self._fences.find_one(
                {"_id": {"$regex": f"^{re.escape(self._prefix)}\\.commands"}},
                sort=[("generation", -1)],
            )
            generation = 1 + (fence or {}).get("generation", 0)
            layout = Layout(generation, "steady", partitions, partitions)
            try:
                await self._layouts.insert_one(build_layout_document(self._prefix, layout))
            except DuplicateKeyError:
                found = await self.read_layout()
                assert found is not None
                return found
        return layout

    async def replace_layout(self, current: Layout, following: Layout) -> None:
        """Store the layout that follows. Raises StoreConflict if ``current`` is not in force."""
        with _translate_errors():
            result = await self._layouts.replace_one(
                {"_id": self._prefix, "generation": current.generation},
                build_layout_document(self._prefix, following),
            )
        if result.matched_count != 1:
            raise StoreConflict("another layout is in force by now")

    async def mark_drained(self, queue: str, token: str) -> None:
        """Note that the phase's barrier came through a queue; ignore the token of another phase."""
        with _translate_errors():
            await self._layouts.update_one(
                {"_id": self._prefix, "token": token, "phase": {"$ne": "steady"}},
                {"$addToSet": {"drained": queue}},
            )

    async def announce(self, worker: str, report: WorkerReport) -> None:
        """Note that a worker is alive, and what it reports about itself."""
        with _translate_errors():
            await self._workers.update_one(
                {"_id": worker},
                {
                    "$currentDate": {"seen": True},
                    "$set": {"prefix": self._prefix, **build_report_document(report)},
                },
                upsert=True,
            )

    async def list_workers(self) -> list[str]:
        """List the live workers."""
        with _translate_errors():
            found = await self._workers.find(
                {"prefix": self._prefix, "$expr": {"$gt": ["$seen", _ago(EXPIRY_SECONDS)]}}
            ).to_list(length=None)
        return sorted(item["_id"] for item in found)

    async def leave(self, worker: str) -> None:
        """Forget a worker that stops."""
        with _translate_errors():
            await self._workers.delete_one({"_id": worker})


@contextmanager
def _translate_errors() -> Iterator[None]:
    with translate_errors(), pymongo.timeout(_SECONDS):
        yield


def _ago(seconds: int) -> dict[str, Any]:
    return {"$subtract": ["$$NOW", seconds * 1_000]}
