"""Publish commands without checking them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from outplan.client.errors import OutcomeUnknown
from outplan.client.session import ReconnectingSession, Route
from outplan.errors import BrokerUnavailable
from outplan.retry import SPREAD_BACKOFF, retrying
from outplan.testing.raw_command import RawCommand

_CONNECT_SECONDS: Final = 30.0


class RawCommandPublisher:
    """Publish commands; reconnect as often as needed."""

    def __init__(self, session: ReconnectingSession, within: float) -> None:
        self._session = session
        self._within = within

    async def publish(self, command: RawCommand) -> None:
        """Publish until the broker confirms. Raises OutcomeUnknown."""

        async def attempt() -> None:
            session = await self._session.session()
            publishing = session.publish(command.routing_key, command.body, command.properties)
            either: set[asyncio.Future[Any]] = {publishing, session.lost}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not publishing.done():
                raise session.lost.result()
            publishing.result()
            self._session.note_progress()

        retry = retrying(BrokerUnavailable, on_error=self._on_error, wait=SPREAD_BACKOFF)
        try:
            async with asyncio.timeout(self._within):
                await retry(attempt)
        except TimeoutError:
            raise OutcomeUnknown(command.message_id, self._session.trouble) from None

    def _on_error(self, error: BaseException) -> None:
        self._session.trouble = str(error)


@asynccontextmanager
async def open_raw_command_publisher(
    amqp_url: str, prefix: str, within: float
) -> AsyncIterator[RawCommandPublisher]:
    """Connect until the block ends. Raises Refused or Unreachable.

    ``within`` limits each publication, in seconds.
    """
    route = Route(amqp_url, prefix, f"{prefix}.publisher")
    session = ReconnectingSession(route, lambda *_: None)
    running = asyncio.create_task(session.run())
    try:
        await session.wait_until_open(_CONNECT_SECONDS)
        yield RawCommandPublisher(session, within)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
