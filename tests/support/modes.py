"""The harness on real servers and in memory, and what is asked of both."""

from contextlib import AbstractAsyncContextManager
from typing import Any

from outplan.testing import Servers
from outplan.testing.harness import OutplanService
from outplan.testing.live import live_service
from outplan.testing.memory import memory_service
from tests.support.world import CUSTOMER, TEL

MODES = ["memory", "servers"]


def opened(
    mode: str, servers: Servers, within: float = 30
) -> AbstractAsyncContextManager[OutplanService]:
    if mode == "memory":
        return memory_service(within=within)
    return live_service(servers, within=within)


def an_outplan(**fields: Any) -> dict[str, Any]:
    return {"customer_id": CUSTOMER, "name": "evenings", "source": TEL, **fields}


async def versions(service: OutplanService) -> dict[str, list[int]]:
    """Of each outplan those that were published, each at its first time."""
    found: dict[str, dict[int, None]] = {}
    for event in await service.events():
        found.setdefault(event.data.id, {})[event.version] = None
    return {id_: list(seen) for id_, seen in found.items()}
