"""A way to one server or to several that can be cut, stalled and opened on one side only."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

from yarl import URL

from tests.support.proxy_connection import End, Passage, Side, Way

# A server that was reached but has not answered within this time is passed over: the kernel
# takes connections for a process that is paused, too.
_PATIENCE = 1.0


class Balancer:
    """Passes each TCP connection on to the next of the servers, in turn, that answers.

    A server answers when it says anything to the first bytes of the caller, who has to speak
    first. Where there is one server alone, it need not. ``budget`` says after how many bytes, of
    both ways together, to cut a new connection, or None.

    What is done to the connections is done at once. New ones wait out a stall, and are not
    touched by the rest.
    """

    def __init__(self, *targets: str, patience: float = _PATIENCE) -> None:
        self._targets = [URL(target) for target in targets]
        self._patience = patience
        self._next = 0
        self._passages: set[Passage] = set()
        self._waiting: dict[asyncio.Event, Callable[[], bool]] = {}
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.url = ""
        self.cuts = 0
        self.connections = 0
        self.budget: Callable[[], int | None] = lambda: None

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._passages)

    @property
    def held(self) -> int:
        """How many bytes are held on their way to the servers."""
        return sum(passage.held for passage in self._passages)

    def cut(self, count: int | None = None, luck: random.Random | None = None) -> None:
        """Cut all connections, or so many at random, on both sides."""
        chosen = list(self._passages)
        if count is not None:
            chosen = (luck or random.Random()).sample(chosen, min(count, len(chosen)))
        for passage in chosen:
            passage.cut()

    def stall(self, way: Way = "both") -> None:
        """Pass no bytes that way; the connections stay open, and nothing is lost of them."""
        self._flowing.clear()
        for passage in self._passages:
            passage.hold(way)

    def strand(self, side: Side = "callers") -> None:
        """Cut off one side, and leave the other with an open connection that hears nothing."""
        self._flowing.set()
        for passage in list(self._passages):
            passage.strand(side)

    def resume(self) -> None:
        """End the stall; first of all what was held is passed on."""
        self._flowing.set()
        for passage in list(self._passages):
            if not passage.is_stranded:
                passage.release()

    def release(self) -> None:
        """End the stall, and close what was left open on one side behind what was held for it."""
        self._flowing.set()
        for passage in list(self._passages):
            passage.release()

    async def until(self, true: Callable[[], bool], seconds: float = 30) -> None:
        """Wait for what is to come; each connection and each piece of data is looked at."""
        news = asyncio.Event()
        if not true():
            self._waiting[news] = true
            try:
                async with asyncio.timeout(seconds):
                    await news.wait()
            finally:
                del self._waiting[news]

    async def serve(self) -> asyncio.Server:
        """Listen on a free port of 127.0.0.1: `url` is the first target's with that port."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._accept, "127.0.0.1", 0)
        self.url = str(self._targets[0].with_port(server.sockets[0].getsockname()[1]))
        return server

    async def close(self) -> None:
        self.cut()
        await self.until(lambda: not self._passages)

    def _accept(self) -> End:
        passage = Passage(self._look, self._over)
        passage.budget = self.budget()
        self._passages.add(passage)
        self.connections += 1
        passage.opening = asyncio.create_task(self._open(passage))
        self._look()
        return passage.caller

    def _over(self, passage: Passage) -> None:
        if passage.opening:
            passage.opening.cancel()
        self._passages.discard(passage)
        self.cuts += passage.was_cut
        self._look()

    def _look(self) -> None:
        for news, true in self._waiting.items():
            if true():
                news.set()

    async def _open(self, passage: Passage) -> None:
        several = len(self._targets) > 1
        if several:
            await passage.caller.heard.wait()
        await self._flowing.wait()
        opening = bytes(passage.caller.held) if several else b""
        for target in self._in_turn():
            with suppress(OSError):  # a timeout is one
                passage.join(await self._reached(target, passage, opening), len(opening))
                await self._flowing.wait()
                if not passage.is_stranded:
                    passage.release()
                return
        passage.caller.abort()

    async def _reached(self, target: URL, passage: Passage, opening: bytes) -> End:
        """Connect to the server and have it answer the opening; OSError if it does not."""
        loop = asyncio.get_running_loop()
        server = passage.end()
        assert target.host is not None
        assert target.port is not None
        try:
            async with asyncio.timeout(self._patience if len(self._targets) > 1 else None):
                await loop.create_connection(lambda: server, target.host, target.port)
                if opening:
                    server.write(opening)
                    await server.heard.wait()
        except BaseException:
            server.abort()
            raise
        if server.is_lost:
            raise ConnectionResetError(f"{target} closed the connection")
        return server

    def _in_turn(self) -> Iterator[URL]:
        first = self._next
        self._next = (first + 1) % len(self._targets)
        return iter(self._targets[first:] + self._targets[:first])


@asynccontextmanager
async def balanced(*targets: str, patience: float = _PATIENCE) -> AsyncIterator[Balancer]:
    """Open a `Balancer` to the servers at these URLs, and cut its connections at the end."""
    balancer = Balancer(*targets, patience=patience)
    server = await balancer.serve()
    try:
        yield balancer
    finally:
        server.close()
        await balancer.close()
