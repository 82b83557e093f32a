"""One session starts the servers once; tests isolate themselves by prefix and database."""

from collections.abc import Iterator

import pytest

from service.testing.servers import Servers, start_servers


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with start_servers() as running:
        yield running
