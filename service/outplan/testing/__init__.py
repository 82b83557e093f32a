"""For test suites: the real servers, a worker on them, and the service in memory."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from outplan.testing.deployment import Deployment
    from outplan.testing.errors import (
        NotControllable,
        ServerFailed,
        ServersUnavailable,
        WorkerFailed,
    )
    from outplan.testing.facades import AsyncService, SyncService
    from outplan.testing.harness import Document, OutplanService, Rejected
    from outplan.testing.live import live_service
    from outplan.testing.memory import memory_service
    from outplan.testing.servers import RabbitServer, Server, Servers, start_servers

__all__ = [
    "AsyncService",
    "Deployment",
    "Document",
    "NotControllable",
    "OutplanService",
    "RabbitServer",
    "Rejected",
    "Server",
    "ServerFailed",
    "Servers",
    "ServersUnavailable",
    "SyncService",
    "WorkerFailed",
    "live_service",
    "memory_service",
    "start_servers",
]

# All others are in ``servers``.
_ELSEWHERE: Final = {
    "AsyncService": "facades",
    "SyncService": "facades",
    "Document": "harness",
    "OutplanService": "harness",
    "Deployment": "deployment",
    "Rejected": "harness",
    "WorkerFailed": "errors",
    "live_service": "live",
    "memory_service": "memory",
}


def __getattr__(name: str) -> Any:
    # pytest loads the plugin in this package in every run of whoever has it installed: nothing
    # is imported before it is wanted.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'servers')}"), name)
