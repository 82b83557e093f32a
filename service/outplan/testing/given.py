"""Servers that somebody else runs, given by URL."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from outplan.testing.servers import (
    AMQP_VARIABLE,
    MODE_VARIABLE,
    MONGO_VARIABLE,
    NOT_YET,
    NotControllable,
    Servers,
    ServersUnavailable,
    broker_version,
    store_version,
)


@contextmanager
def given_servers() -> Iterator[Servers]:
    """Find both servers where the environment says. Raises `ServersUnavailable`."""
    missing = [name for name in (AMQP_VARIABLE, MONGO_VARIABLE) if not os.environ.get(name)]
    if missing:
        both = f"{AMQP_VARIABLE} and {MONGO_VARIABLE} go together"
        raise ServersUnavailable(f"{' and '.join(missing)} must be set: {both}")
    rabbitmq = GivenServer("rabbitmq", os.environ[AMQP_VARIABLE], broker_version)
    mongodb = GivenServer("mongodb", os.environ[MONGO_VARIABLE], store_version)
    yield Servers("urls", rabbitmq, mongodb)


class GivenServer:
    """A `RabbitServer` or `Server` that somebody else runs."""

    def __init__(self, name: str, url: str, version_of: Callable[[str], str]) -> None:
        self.name = name
        self.url = url
        try:
            self.version = version_of(url)
        except (*NOT_YET, ValueError) as error:  # ValueError: it is no URL at all
            raise ServersUnavailable(f"{name} does not answer at the URL given: {error}") from error

    def _refuse(self, *_: str) -> NoReturn:
        raise NotControllable(
            f"{self.name} was given by its URL and is not the tests' to control; "
            f"set {MODE_VARIABLE} to docker or processes for one that is, or mark the test "
            "with @pytest.mark.outplan_own_servers"
        )

    start = stop = kill = restart = pause = resume = ctl = _refuse
