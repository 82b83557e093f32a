"""Use servers that already run, given by URL."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from outplan.testing.errors import ServersUnavailable
from outplan.testing.servers.interface import (
    AMQP_VARIABLE,
    MODE_VARIABLE,
    MONGO_VARIABLE,
    ReadOnlyServer,
    Servers,
)
from outplan.testing.servers.probes import NOT_READY, mongodb_version, rabbitmq_version

_WHY_NOT = (
    "was given by its URL and is not the tests' to control; "
    f"set {MODE_VARIABLE} to docker or processes for one that is, or mark the test "
    "with @pytest.mark.outplan_own_servers"
)


@contextmanager
def external_servers() -> Iterator[Servers]:
    """Connect to both servers at the URLs in the environment. Raises `ServersUnavailable`."""
    missing = [name for name in (AMQP_VARIABLE, MONGO_VARIABLE) if not os.environ.get(name)]
    if missing:
        both = f"set both {AMQP_VARIABLE} and {MONGO_VARIABLE}"
        raise ServersUnavailable(f"{' and '.join(missing)} must be set: {both}")
    yield Servers(
        "urls",
        _external_server("rabbitmq", os.environ[AMQP_VARIABLE], rabbitmq_version),
        _external_server("mongodb", os.environ[MONGO_VARIABLE], mongodb_version),
    )


def _external_server(name: str, url: str, probe: Callable[[str], str]) -> ReadOnlyServer:
    try:
        return ReadOnlyServer(name, url, probe(url), _WHY_NOT)
    except (*NOT_READY, ValueError) as error:  # ValueError: the text is not a URL
        raise ServersUnavailable(f"{name} does not answer at the URL given: {error}") from error
