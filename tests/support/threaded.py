"""Drive the blocking client from tests that are written for the asynchronous one.

`ThreadedClient` and `threaded_events` have the interfaces of `OutplanClient` and `events`, and call
`SyncOutplanClient` and `sync_events` in threads.
"""

from asyncio import to_thread
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from typing import Any, Self

from outplan.client import (
    CommandResult,
    Progress,
    Request,
    Result,
    SyncEvents,
    SyncOutplanClient,
    sync_events,
)


class ThreadedClient:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._client = SyncOutplanClient(*args, **kwargs)

    async def __aenter__(self) -> Self:
        await to_thread(self._client.__enter__)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await to_thread(self._client.close)

    async def create(self, **fields: Any) -> Result:
        return await to_thread(self._client.create, **fields)

    async def update(self, *args: Any, **fields: Any) -> Result:
        return await to_thread(self._client.update, *args, **fields)

    async def delete(self, *args: Any, **fields: Any) -> Result:
        return await to_thread(self._client.delete, *args, **fields)

    async def ask(self, request: Request) -> Result:
        return await to_thread(self._client.ask, request)

    async def send(self, request: Request) -> str:
        return await to_thread(self._client.send, request)

    async def send_many(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        in_flight: int = 500,
        progress: Callable[[Progress], None] | None = None,
    ) -> AsyncGenerator[CommandResult[Result]]:
        if isinstance(requests, AsyncIterable):
            requests = [request async for request in requests]
        results = self._client.send_many(requests, in_flight=in_flight, progress=progress)
        while (result := await to_thread(next, results, None)) is not None:
            yield result


class ThreadedEvents:
    def __init__(self, stream: SyncEvents) -> None:
        self._stream = stream

    async def __aenter__(self) -> Self:
        await to_thread(self._stream.__enter__)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await to_thread(self._stream.close)

    async def settle(self) -> None:
        await to_thread(self._stream.settle)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        item = await to_thread(next, self._stream, None)
        if item is None:
            raise StopAsyncIteration
        return item


def threaded_events(*args: Any, **kwargs: Any) -> ThreadedEvents:
    return ThreadedEvents(sync_events(*args, **kwargs))
