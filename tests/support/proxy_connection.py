"""Forward one connection of the balancer: each end passes its data to the other one."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Literal

Direction = Literal["up", "down", "both"]
Side = Literal["callers", "servers"]

# An end stops reading once it holds so many bytes.
_MOST_HELD_BYTES = 1 << 20


class End(asyncio.Protocol):
    """One end of a connection.

    Its data goes to the `other` end, or to ``held`` while it ``is_holding``. ``received`` is set
    once it has received data or is lost.
    """

    def __init__(self, on_data: Callable[[int], None], on_lost: Callable[[], None]) -> None:
        self.other: End | None = None
        self.held = bytearray()
        self.is_holding = True
        self.received = asyncio.Event()
        self.is_lost = False
        self._on_data = on_data
        self._on_lost = on_lost
        self._is_full = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.is_holding:
            self.held += data
            self.apply_backpressure()
        else:
            self.other.write(data)
        self.received.set()
        self._on_data(len(data))

    def connection_lost(self, _: Exception | None) -> None:
        self.is_lost = True
        self.received.set()
        self._on_lost()

    def pause_writing(self) -> None:
        self._is_full = True
        if self.other:
            self.other.apply_backpressure()

    def resume_writing(self) -> None:
        self._is_full = False
        if self.other:
            self.other.apply_backpressure()

    def apply_backpressure(self) -> None:
        """Stop reading while there is no room for more data."""
        if self._transport is None or self._transport.is_closing():
            return
        if len(self.held) > _MOST_HELD_BYTES or (self.other and self.other._is_full):
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(data)

    def flush(self) -> None:
        """Forward what was held, and from now on everything that comes."""
        self.is_holding = False
        if self.other and self.held:
            data, self.held = bytes(self.held), bytearray()
            self.other.write(data)
            self.apply_backpressure()

    def close(self) -> None:
        """Close the connection after what was written."""
        if self._transport:
            self._transport.close()

    def abort(self) -> None:
        if self._transport:
            self._transport.abort()


class ProxyConnection:
    """A caller's end and, after `join`, a server's end.

    A closed end closes the other one, unless it is holding.
    """

    def __init__(
        self, on_data: Callable[[], None], on_closed: Callable[["ProxyConnection"], None]
    ) -> None:
        self._on_data = on_data
        self._on_closed = on_closed
        self._last_data = monotonic()
        self.budget: int | None = None
        self.opening: asyncio.Task[None] | None = None
        self.was_disconnected = False
        self.is_half_open = False
        self.server: End | None = None
        self.caller = self.make_end()

    @property
    def idle_seconds(self) -> float:
        """The seconds since the last byte in either direction."""
        return monotonic() - self._last_data

    @property
    def held(self) -> int:
        """Count the bytes held on their way to the server."""
        return len(self.caller.held) if self.server else 0

    def make_end(self) -> End:
        """Make an end for the caller, or for a server to try."""
        return End(self._count, self._propagate_close)

    def join(self, server: End, sent: int) -> None:
        """Connect the server, which has the first `sent` bytes; `release` forwards the rest."""
        del self.caller.held[:sent]
        self.server = server
        server.other, self.caller.other = self.caller, server

    def hold(self, direction: Direction) -> None:
        """Hold back all bytes in that direction."""
        if direction != "down":
            self.caller.is_holding = True
        if direction != "up" and self.server:
            self.server.is_holding = True

    def leave_half_open(self, side: Side) -> None:
        """Abort one side; keep the other one open and silent until the release."""
        self.hold("both")
        end = self.caller if side == "callers" else self.server
        if end:
            self.is_half_open = True
            end.abort()

    def release(self) -> None:
        """Forward what was held, then close the side whose other one is lost."""
        if self.server:
            self.caller.flush()
            self.server.flush()
            self._propagate_close()

    def disconnect(self) -> None:
        self.was_disconnected = True
        self.caller.is_holding = False
        self.caller.abort()
        if self.server:
            self.server.is_holding = False
            self.server.abort()

    def _count(self, size: int) -> None:
        self._last_data = monotonic()
        if self.budget is not None:
            self.budget -= size
            if self.budget < 0 and not self.was_disconnected:
                self.disconnect()
        self._on_data()

    def _propagate_close(self) -> None:
        if self.server is None:
            is_closed = self.caller.is_lost
        else:
            for end, other in ((self.caller, self.server), (self.server, self.caller)):
                if end.is_lost and not end.is_holding:
                    other.close()
            is_closed = self.caller.is_lost and self.server.is_lost
        if is_closed:
            self._on_closed(self)
