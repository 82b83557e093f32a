"""A way to the broker that can be cut: at once, after so many bytes, or on one side only."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from yarl import URL


class Proxy:
    """Passes TCP connections on. ``budget`` says after how many bytes to cut each, or None."""

    def __init__(self, target: str) -> None:
        self._target = URL(target)
        self._passages: set[_Passage] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Condition()
        self.url = ""
        self.cuts = 0
        self.connections = 0
        self.held = 0
        self.holding = False
        self.budget: Callable[[], int | None] = lambda: None

    def cut(self) -> None:
        """Cut every connection, both ways."""
        for passage in list(self._passages):
            passage.cut()

    def strand(self) -> None:
        """Cut the callers off; the broker's side stays open, and what is held is still to come."""
        self.holding = False
        for passage in self._passages:
            passage.caller.transport.abort()

    def release(self) -> None:
        """Deliver to the broker what was held, and close those connections then."""
        for passage in list(self._passages):
            passage.release()

    async def until(self, true: Callable[[], bool], seconds: float = 30) -> None:
        """Wait for what is to come; each connection and each piece of data is looked at."""
        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(true)

    async def serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = str(self._target.with_port(server.sockets[0].getsockname()[1]))
        return server

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def told(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        await self.told()
        try:
            far = await asyncio.open_connection(self._target.host, self._target.port)
        except OSError:
            writer.transport.abort()
            return
        passage = _Passage(self, writer, far[1], self.budget())
        self._passages.add(passage)
        try:
            await passage.run(reader, far[0])
        finally:
            self._passages.discard(passage)


class _Passage:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: Proxy,
        caller: asyncio.StreamWriter,
        broker: asyncio.StreamWriter,
        budget: int | None,
    ) -> None:
        self._proxy = proxy
        self.caller = caller
        self._broker = broker
        self._budget = budget
        self._held = b""
        self._released = asyncio.Event()

    def cut(self) -> None:
        self._proxy.cuts += 1
        self.caller.transport.abort()
        self._broker.transport.abort()

    def release(self) -> None:
        self._broker.write(self._held)
        self._held = b""
        self._released.set()

    async def run(self, caller: asyncio.StreamReader, broker: asyncio.StreamReader) -> None:
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(caller, self._broker, up=True))
                both.create_task(self._pass(broker, self.caller, up=False))
        finally:
            self.caller.transport.abort()
            self._broker.close()

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, up: bool
    ) -> None:
        try:
            while data := await source.read(65_536):
                if not self._pay(len(data)):
                    return
                await self._forward(data, sink, up)
        except OSError:
            pass
        if up and self._held:
            await self._released.wait()
        # The other direction ends with this one.
        self.caller.transport.abort()
        self._broker.close()

    async def _forward(self, data: bytes, sink: asyncio.StreamWriter, up: bool) -> None:
        if up and self._proxy.holding:
            self._held += data
            self._proxy.held += len(data)
            await self._proxy.told()
        else:
            sink.write(data)
            await sink.drain()

    def _pay(self, size: int) -> bool:
        if self._budget is None:
            return True
        self._budget -= size
        if self._budget < 0:
            self.cut()
        return self._budget >= 0


@asynccontextmanager
async def proxied(target: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(target)
    server = await proxy.serve()
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
