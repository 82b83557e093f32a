"""Forward TCP connections to one server or several; disconnect, stall and half-open them."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

from yarl import URL

from tests.support.proxy_connection import Direction, End, ProxyConnection, Side

# Skip a server that has not answered within this time: the kernel accepts connections for a paused
# process too.
_PATIENCE = 1.0


class Balancer:
    """Forward each TCP connection to the next server, in turn, that answers.

    A server answers once it sends anything after the caller's first bytes, so the caller must
    speak first. With a single server the balancer connects at once.

    ``url`` is the first target's with the balancer's port. ``budget`` returns, for each new
    connection, the bytes of both directions after which to disconnect it, or None.
    ``disconnects`` and ``accepted_count`` count connections since the start.

    The methods act on the connections of that moment. New connections wait for the end of a stall
    and are otherwise unaffected.
    """

    def __init__(self, *targets: str, port: int, patience: float = _PATIENCE) -> None:
        self._targets = [URL(target) for target in targets]
        self._patience = patience
        self._next = 0
        self._connections: set[ProxyConnection] = set()
        self._waiters: dict[asyncio.Event, Callable[[], bool]] = {}
        self._not_stalled = asyncio.Event()
        self._not_stalled.set()
        self.url = str(self._targets[0].with_port(port))
        self.disconnects = 0
        self.accepted_count = 0
        self.budget: Callable[[], int | None] = lambda: None

    @property
    def open_count(self) -> int:
        """Count the open connections."""
        return len(self._connections)

    @property
    def held_bytes(self) -> int:
        """Count the bytes held back on their way to the servers."""
        return sum(connection.held for connection in self._connections)

    def disconnect(self, count: int | None = None, rng: random.Random | None = None) -> None:
        """Abort both sides of all connections, or of ``count`` random ones."""
        chosen = list(self._connections)
        if count is not None:
            chosen = (rng or random.Random()).sample(chosen, min(count, len(chosen)))
        for connection in chosen:
            connection.disconnect()

    def stall(self, direction: Direction = "both") -> None:
        """Hold back all bytes in a direction; keep the connections open and lose nothing."""
        self._not_stalled.clear()
        for connection in self._connections:
            connection.hold(direction)

    def forget_idle(self, seconds: float) -> None:
        """Drop all further bytes of connections that were idle for so long, as a firewall does."""
        for connection in self._connections:
            if connection.idle_seconds >= seconds:
                connection.hold("both")

    def leave_half_open(self, side: Side = "callers") -> None:
        """Abort one side of all connections, and leave the other one open and silent."""
        self._not_stalled.set()
        for connection in list(self._connections):
            connection.leave_half_open(side)

    def resume(self) -> None:
        """Forward the held bytes, then everything that comes."""
        self._not_stalled.set()
        for connection in list(self._connections):
            if not connection.is_half_open:
                connection.release()

    def release(self) -> None:
        """Resume, and close half-open connections after their held bytes."""
        self._not_stalled.set()
        for connection in list(self._connections):
            connection.release()

    async def wait_for(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until the condition holds; check it at each connection, end and piece of data.

        Raises TimeoutError.
        """
        woken = asyncio.Event()
        if not condition():
            self._waiters[woken] = condition
            try:
                async with asyncio.timeout(seconds):
                    await woken.wait()
            finally:
                del self._waiters[woken]

    async def close(self) -> None:
        """Disconnect all and wait until they are closed."""
        self.disconnect()
        await self.wait_for(lambda: not self._connections)

    def accept(self) -> End:
        """Make the caller's end of a new connection: a protocol factory."""
        connection = ProxyConnection(self._wake_waiters, self._on_closed)
        connection.budget = self.budget()
        self._connections.add(connection)
        self.accepted_count += 1
        connection.opening = asyncio.create_task(self._connect_to_any(connection))
        self._wake_waiters()
        return connection.caller

    def _on_closed(self, connection: ProxyConnection) -> None:
        if connection.opening:
            connection.opening.cancel()
        self._connections.discard(connection)
        self.disconnects += connection.was_disconnected
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        for woken, condition in self._waiters.items():
            if condition():
                woken.set()

    async def _connect_to_any(self, connection: ProxyConnection) -> None:
        several = len(self._targets) > 1
        if several:
            await connection.caller.received.wait()
        await self._not_stalled.wait()
        opening = bytes(connection.caller.held) if several else b""
        for target in self._rotate_targets():
            with suppress(OSError):  # TimeoutError is one.
                connection.join(await self._connect(target, connection, opening), len(opening))
                await self._not_stalled.wait()
                if not connection.is_half_open:
                    connection.release()
                return
        connection.caller.abort()

    async def _connect(self, target: URL, connection: ProxyConnection, opening: bytes) -> End:
        """Connect to the server and wait for its answer to the opening. Raises OSError."""
        loop = asyncio.get_running_loop()
        server = connection.make_end()
        assert target.host is not None
        assert target.port is not None
        try:
            async with asyncio.timeout(self._patience if len(self._targets) > 1 else None):
                await loop.create_connection(lambda: server, target.host, target.port)
                if opening:
                    server.write(opening)
                    await server.received.wait()
        except BaseException:
            server.abort()
            raise
        if server.is_lost:
            raise ConnectionResetError(f"{target} closed the connection")
        return server

    def _rotate_targets(self) -> Iterator[URL]:
        first = self._next
        self._next = (first + 1) % len(self._targets)
        return iter(self._targets[first:] + self._targets[:first])


@asynccontextmanager
async def run_balancer(*targets: str, patience: float = _PATIENCE) -> AsyncIterator[Balancer]:
    """Run a `Balancer` to the servers at these URLs; close its connections at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        balancer = Balancer(*targets, port=listener.getsockname()[1], patience=patience)
        server = await asyncio.get_running_loop().create_server(balancer.accept, sock=listener)
        try:
            yield balancer
        finally:
            server.close()
            await balancer.close()
