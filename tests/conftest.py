"""One session starts the servers once; tests isolate themselves by prefix and database."""

import signal
from collections.abc import Iterator

import pytest

from outplan.testing.servers import Servers, start_servers

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them whatever
# they start: some of that is to be ended by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with start_servers() as running:
        yield running
