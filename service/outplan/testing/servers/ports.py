"""Reserve TCP ports for servers that start later."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import SystemRandom

from outplan.testing.errors import ServersUnavailable

# Below the kernel's range for outgoing connections: one of those could otherwise take the port of
# a server that is stopped.
_PORTS = range(20_000, 32_000)


@contextmanager
def reserve_ports(count: int) -> Iterator[list[int]]:
    """Yield free TCP ports of 127.0.0.1 that no other process reserves until the block ends."""
    with ExitStack() as stack:
        yield [stack.enter_context(_reserve_port()).getsockname()[1] for _ in range(count)]


def _reserve_port() -> socket.socket:
    # The UDP port of the same number is the lock: one process at a time can bind it, and the
    # kernel frees it when that process ends.
    for port in SystemRandom().sample(_PORTS, 100):
        lock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            lock.bind(("127.0.0.1", port))
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            lock.close()
        else:
            return lock
    raise ServersUnavailable(f"no free port in {_PORTS}")
