"""One connection through the balancer: two ends, each passing on what the other one receives."""

import asyncio
from collections.abc import Callable
from typing import Literal

Way = Literal["up", "down", "both"]
Side = Literal["callers", "servers"]

# What an end keeps of what may not be passed on yet; when it is full, the sender has to wait.
_HELD_BYTES = 1 << 20


class End(asyncio.Protocol):
    """One end. What it receives goes to the `other` end, or is held until it may."""

    def __init__(self, received: Callable[[int], None], lost: Callable[[], None]) -> None:
        self.other: End | None = None
        self.held = bytearray()
        self.holding = True
        self.heard = asyncio.Event()
        self.is_lost = False
        self._received = received
        self._lost = lost
        self._is_full = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.holding:
            self.held += data
            self.regulate()
        else:
            self.other.write(data)
        self.heard.set()
        self._received(len(data))

    def connection_lost(self, _: Exception | None) -> None:
        self.is_lost = True
        self.heard.set()
        self._lost()

    def pause_writing(self) -> None:
        self._is_full = True
        if self.other:
            self.other.regulate()

    def resume_writing(self) -> None:
        self._is_full = False
        if self.other:
            self.other.regulate()

    def regulate(self) -> None:
        """Read on, or let the sender wait when there is no room for more."""
        if self._transport is None or self._transport.is_closing():
            return
        if len(self.held) > _HELD_BYTES or (self.other and self.other._is_full):
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(data)

    def deliver(self) -> None:
        """Pass on what was held, and from now on what comes."""
        self.holding = False
        if self.other and self.held:
            data, self.held = bytes(self.held), bytearray()
            self.other.write(data)
            self.regulate()

    def close(self) -> None:
        """End the connection behind what was written."""
        if self._transport:
            self._transport.close()

    def abort(self) -> None:
        if self._transport:
            self._transport.abort()


class Passage:
    """A caller's end and, once they have been joined, a server's.

    An end that is holding does not pass its own end on either: the other one stays open.
    """

    def __init__(self, received: Callable[[], None], over: Callable[["Passage"], None]) -> None:
        self._told = received
        self._over = over
        self.budget: int | None = None
        self.opening: asyncio.Task[None] | None = None
        self.was_cut = False
        self.is_stranded = False
        self.server: End | None = None
        self.caller = self.end()

    @property
    def held(self) -> int:
        """Tell how many bytes are held on their way to the server."""
        return len(self.caller.held) if self.server else 0

    def end(self) -> End:
        """Make an end, for the caller or for a server that is tried."""
        return End(self._received, self._settle)

    def join(self, server: End, sent: int) -> None:
        """Take the server, which has the first `sent` bytes; `release` lets the rest pass."""
        del self.caller.held[:sent]
        self.server = server
        server.other, self.caller.other = self.caller, server

    def hold(self, way: Way) -> None:
        """Pass nothing on that way; the connection stays open."""
        if way != "down":
            self.caller.holding = True
        if way != "up" and self.server:
            self.server.holding = True

    def strand(self, side: Side) -> None:
        """Cut one side off; the other one stays open until the release, and hears nothing."""
        self.hold("both")
        end = self.caller if side == "callers" else self.server
        if end:
            self.is_stranded = True
            end.abort()

    def release(self) -> None:
        """Pass on what was held, and then the end of a side that has ended."""
        if self.server:
            self.caller.deliver()
            self.server.deliver()
            self._settle()

    def cut(self) -> None:
        self.was_cut = True
        self.caller.holding = False
        self.caller.abort()
        if self.server:
            self.server.holding = False
            self.server.abort()

    def _received(self, size: int) -> None:
        if self.budget is not None:
            self.budget -= size
            if self.budget < 0 and not self.was_cut:
                self.cut()
        self._told()

    def _settle(self) -> None:
        if self.server is None:
            over = self.caller.is_lost
        else:
            for end, other in ((self.caller, self.server), (self.server, self.caller)):
                if end.is_lost and not end.holding:
                    other.close()
            over = self.caller.is_lost and self.server.is_lost
        if over:
            self._over(self)
