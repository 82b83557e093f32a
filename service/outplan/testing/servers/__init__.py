"""Start RabbitMQ and MongoDB for tests: by URL, in Docker, or as child processes."""

from outplan.testing.errors import NotControllable, ServerFailed, ServersUnavailable
from outplan.testing.servers.interface import (
    AMQP_VARIABLE,
    MODE_VARIABLE,
    MONGO_VARIABLE,
    Mode,
    RabbitServer,
    Server,
    Servers,
)
from outplan.testing.servers.own import OwnRabbit, OwnServer, Runner, start_together
from outplan.testing.servers.ports import reserve_ports
from outplan.testing.servers.start import start_servers

__all__ = [
    "AMQP_VARIABLE",
    "MODE_VARIABLE",
    "MONGO_VARIABLE",
    "Mode",
    "NotControllable",
    "OwnRabbit",
    "OwnServer",
    "RabbitServer",
    "Runner",
    "Server",
    "ServerFailed",
    "Servers",
    "ServersUnavailable",
    "reserve_ports",
    "start_servers",
    "start_together",
]
