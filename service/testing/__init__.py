"""For test suites that need the real servers."""

from service.testing.servers import (
    NotControllable,
    RabbitServer,
    Server,
    ServerFailed,
    Servers,
    ServersUnavailable,
    start_servers,
)

__all__ = [
    "NotControllable",
    "RabbitServer",
    "Server",
    "ServerFailed",
    "Servers",
    "ServersUnavailable",
    "start_servers",
]
