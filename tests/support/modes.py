"""Open the harness on real servers and in memory."""

from contextlib import AbstractAsyncContextManager
from typing import Any

from outplan.testing import AsyncService, Servers
from outplan.testing.live import live_service
from outplan.testing.memory import memory_service
from tests.support.world import CUSTOMER, TEL

MODES = ["memory", "servers"]


def open_service(
    mode: str, servers: Servers, within: float = 30
) -> AbstractAsyncContextManager[AsyncService]:
    if mode == "memory":
        return memory_service(within=within)
    return live_service(servers, within=within)


def outplan_fields(**fields: Any) -> dict[str, Any]:
    return {"customer_id": CUSTOMER, "name": "evenings", "source": TEL, **fields}


async def versions(service: AsyncService) -> dict[str, list[int]]:
    """Return the published versions of each outplan, without repeats."""
    found: dict[str, dict[int, None]] = {}
    for event in await service.events():
        found.setdefault(event.data.id, {})[event.version] = None
    return {id_: list(seen) for id_, seen in found.items()}
