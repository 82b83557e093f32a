"""Test programs that use outplans: real servers, a worker on them, and the service in memory."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from outplan.testing.deployment import Deployment, open_deployment
    from outplan.testing.errors import (
        NotControllable,
        ServerFailed,
        ServersUnavailable,
        WorkerFailed,
    )
    from outplan.testing.harness import AsyncService, Document, Rejected, SyncService
    from outplan.testing.live import (
        LiveService,
        WorkerProcess,
        live_service,
        open_worker,
        read_rejected,
    )
    from outplan.testing.memory import memory_service
    from outplan.testing.servers import (
        RabbitServer,
        Server,
        Servers,
        reserve_ports,
        start_servers,
    )

__all__ = [
    "AsyncService",
    "Deployment",
    "Document",
    "LiveService",
    "NotControllable",
    "RabbitServer",
    "Rejected",
    "Server",
    "ServerFailed",
    "Servers",
    "ServersUnavailable",
    "SyncService",
    "WorkerFailed",
    "WorkerProcess",
    "live_service",
    "memory_service",
    "open_deployment",
    "open_worker",
    "read_rejected",
    "reserve_ports",
    "start_servers",
]

# All others are in ``servers``, which re-exports its errors.
_MODULES: Final = {
    "AsyncService": "harness",
    "Deployment": "deployment",
    "Document": "harness",
    "LiveService": "live",
    "Rejected": "harness",
    "SyncService": "harness",
    "WorkerFailed": "errors",
    "WorkerProcess": "live",
    "live_service": "live",
    "memory_service": "memory",
    "open_deployment": "deployment",
    "open_worker": "live",
    "read_rejected": "live",
}


def __getattr__(name: str) -> Any:
    # Every pytest run loads the plugin in this package, if it is installed. So this module imports
    # nothing until it is used.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'servers')}"), name)
