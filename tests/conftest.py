"""Start the servers once a session; each test has its own prefix and database on them."""

import signal
from collections.abc import Iterator

import pytest

from outplan.testing.servers import Servers, start_servers

# A shell starts background jobs with SIGINT ignored, and child processes inherit that; some tests
# end their child processes by SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with start_servers() as servers:
        yield servers
